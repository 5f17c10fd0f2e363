"""What is shown of the selection while a model trains, and the trackers it goes to."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tiny_run import tiny_config
from trireid.config.load import override_config
from trireid.errors import RunError
from trireid.models.guidance import guide_shares
from trireid.train import selection_log, trackers
from trireid.train.loop import train
from trireid.train.runs import claim_run_folder, read_epochs, write_start
from trireid.visualize.selections import selection_pictures

EVERY = "train.maps_every=1"


@pytest.fixture(scope="module")
def watched(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched") / "run"
    train(tiny_config(tree, folder, EVERY), progress=False, draw=selection_pictures)
    return folder


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_maps_and_statistics_reach_tensorboard_at_every_due_epoch(watched: Path) -> None:
    found = events(watched)
    images = [tag for tag in found.Tags()["images"] if tag.startswith("selection/sdtps/")]
    assert len(images) == selection_log.NUM_ITEMS
    assert [event.step for event in found.Images(images[0])] == [1, 2]
    assert (found.Images(images[0])[0].height, found.Images(images[0])[0].width) == (3 * 32, 3 * 16)
    for name in ("kept", "overlap/rgb-nir", "overlap/nir-tir", "entropy/tir", "guide/own", "guide/predictor"):
        assert [event.step for event in found.Scalars(f"selection/sdtps/{name}")] == [1, 2]
    assert found.Scalars("selection/sdtps/kept")[0].value == 0.5


def test_maps_change_nothing_that_is_learnt(watched: Path, tree: Path, tmp_path: Path) -> None:
    train(tiny_config(tree, tmp_path / "run", "train.maps_every=0"), progress=False, draw=selection_pictures)
    one, other = read_epochs(watched), read_epochs(tmp_path / "run")
    assert [(e["loss"], e["metrics"]) for e in one] == [(e["loss"], e["metrics"]) for e in other]
    assert "selection" in one[0]
    assert "selection" not in other[0]
    assert events(tmp_path / "run").Tags()["images"] == []


def test_a_model_without_selection_shows_none(tree: Path, tmp_path: Path) -> None:
    train(
        tiny_config(tree, tmp_path / "run", EVERY, "model.head=none", "train.epochs=1"),
        progress=False,
        draw=selection_pictures,
    )
    found = events(tmp_path / "run").Tags()
    assert found["images"] == []
    assert not [tag for tag in found["scalars"] if tag.startswith("selection")]


def test_a_failing_draw_costs_a_warning_and_not_the_run(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> dict[str, selection_log.Pixels]:
        raise OSError("no font")

    with caplog.at_level(logging.WARNING):
        train(tiny_config(tree, tmp_path / "run", EVERY, "train.epochs=1"), progress=False, draw=fail)
    assert (tmp_path / "run" / "metrics.json").exists()
    assert sum("no font" in record.message for record in caplog.records) == 1


def test_shares_of_guides_by_hand() -> None:
    everything = torch.ones(2, 3, dtype=torch.bool)
    shares = guide_shares("sdtps", everything, beta=0.25)  # 0.5 of the predictor, 0.25 * (2, 1, 1) of the guides
    assert shares["guide/predictor"] == pytest.approx(1 / 3)
    assert shares["guide/own"] == pytest.approx(1 / 3)
    assert [shares[f"guide/{name}"] for name in ("rgb", "nir", "tir")] == pytest.approx([2 / 9] * 3)
    assert guide_shares("cross", everything)["guide/own"] == 0
    two = guide_shares("both", torch.tensor([[True, True, False]]))
    assert two["guide/own"] == pytest.approx(2 / 3)
    assert two["guide/tir"] == 0
    assert guide_shares("consensus", everything) == {}


def test_a_tracker_that_is_not_installed_is_refused_at_once(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(RunError, match=r"wandb, which is not installed: pip install 'trireid\[wandb\]'"):
        train(tiny_config(tree, tmp_path / "run", 'train.trackers=["wandb"]'), progress=False, draw=selection_pictures)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def log(self, values: dict[str, float], step: int) -> None:
            raise ConnectionError("no network")

    monkeypatch.setattr(trackers, "_open", lambda name, folder: Broken())
    remote = trackers.RemoteTrackers(["wandb"], tmp_path)
    with caplog.at_level(logging.WARNING):
        remote.log({"a": 1.0}, epoch=1)
        remote.log({"a": 1.0}, epoch=2)
    assert [record.message.count("no network") for record in caplog.records] == [1]


def test_maps_and_trackers_may_change_on_a_resume(tree: Path, tmp_path: Path) -> None:
    config = tiny_config(tree, tmp_path / "run")
    claim_run_folder(config.output, config, resume=False)
    write_start(config.output, config, {})
    claim_run_folder(config.output, override_config(config, ["train.maps_every=0", "train.trackers=[]"]), resume=True)
