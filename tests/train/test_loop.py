"""Whole runs of a tiny model on a tiny tree: the same twice, resumed, chosen honestly, stopped clearly."""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_run import tiny_config, write_tree
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.errors import CheckpointError, DataError, RunError, TrireidError
from trireid.evaluation.feature_files import load_features
from trireid.train import keeper, loop
from trireid.train.checkpoint import load_checkpoint, load_model
from trireid.train.keeper import RunKeeper
from trireid.train.loop import train
from trireid.train.runs import read_epochs
from trireid.train.state import load_state
from trireid.train.testing import evaluate_checkpoint as evaluate_checkpoint

TIMES = ("seconds", "data_seconds", "step_seconds", "evaluation_seconds", "train_seconds")


@pytest.fixture(scope="module")
def finished(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of two epochs, for tests that only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(tiny_config(tree, folder), progress=False, measure_untrained=True)


def timeless(tree: Any) -> Any:
    """The same without clock times."""
    if isinstance(tree, dict):
        return {name: timeless(value) for name, value in tree.items() if name not in TIMES}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


def weights(folder: Path, name: str = "last.safetensors") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / name).model_state


def assert_same_run(first: Path, second: Path) -> None:
    """Figures, losses and weights to the last digit."""
    for name in ("metrics.json",):
        one, other = (json.loads((folder / name).read_text()) for folder in (first, second))
        assert timeless(one) == timeless(other)
    assert timeless(read_epochs(first)) == timeless(read_epochs(second))
    for name in ("last.safetensors", "best.safetensors"):
        one, other = weights(first, name), weights(second, name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_leaves_what_it_promises(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    files = {path.name for path in folder.iterdir()}
    assert files == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "metrics.json",
        "tensorboard",
        "last.safetensors",
        "best.safetensors",
        "state",
        "features.safetensors",
        "records.json",
    }
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    entries = read_epochs(folder)
    assert [entry["epoch"] for entry in entries] == [1, 2]
    assert {"lr", "loss", "metrics", *TIMES[:3]} <= entries[0].keys()
    assert entries[-1]["metrics"]["test"] == metrics["feature"]
    assert load_checkpoint(folder).epoch == 2


def test_figures_are_shares_of_every_pattern(finished: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = finished
    for figures in (metrics["feature"], metrics["best"]["feature"], metrics["untrained"]["feature"]):
        assert set(figures) == {"global", "head", "joint"}
        assert all(0 <= value <= 1 for each in figures.values() for value in each.values())
    assert (metrics["num_queries"], metrics["num_unmatched"], metrics["num_train"]) == (24, 0, 24)


def test_the_untrained_model_is_the_one_that_training_starts_from(tree: Path, tmp_path: Path) -> None:
    # With learning rate 0 only the statistics of BatchNorm move, which no test feature reads.
    config = tiny_config(tree, tmp_path / "run", "train.lr=0", "train.backbone_lr=0", "train.epochs=1")
    metrics = train(config, progress=False, measure_untrained=True)
    assert metrics["untrained"]["feature"] == metrics["feature"]


def test_two_runs_with_one_seed_agree_to_the_last_digit(tree: Path, finished: Any, tmp_path: Path) -> None:
    train(tiny_config(tree, tmp_path / "again"), progress=False, measure_untrained=True)
    assert_same_run(finished[0], tmp_path / "again")


def test_another_seed_is_another_run(tree: Path, finished: Any, tmp_path: Path) -> None:
    train(tiny_config(tree, tmp_path / "run", "train.seed=2"), progress=False)
    one, other = weights(finished[0]), weights(tmp_path / "run")
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_evaluating_more_seldom_does_not_change_what_is_learnt(tree: Path, finished: Any, tmp_path: Path) -> None:
    train(tiny_config(tree, tmp_path / "run", "train.evaluate_every=5"), progress=False)
    one, other = weights(finished[0]), weights(tmp_path / "run")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert ["metrics" in entry for entry in read_epochs(tmp_path / "run")] == [False, True]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), marks=pytest.mark.slow),
        ("data.val_ids=2", "model.sdtps.use_gumbel=true", "train.optimizer=adamw"),
    ],
)
def test_a_resumed_run_ends_as_one_that_was_never_cut_off(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    settings = ("train.epochs=4", "train.checkpoint_every=2", "train.warmup_epochs=1", *overrides)
    whole, cut = (tiny_config(tree, tmp_path / name, *settings) for name in ("whole", "cut"))
    train(whole, progress=False, measure_untrained=True)

    def stop(keeper: RunKeeper, entry: dict[str, Any], *, seconds: float) -> None:
        original(keeper, entry, seconds=seconds)
        if entry["epoch"] == 3:
            raise KeyboardInterrupt

    original = RunKeeper.log
    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            train(cut, progress=False, measure_untrained=True)
    # Epoch 3 was logged, and maybe the best so far, but the state is that of epoch 2.
    assert load_state(cut.output / "state" / "state.pt").epoch == 2
    assert len(read_epochs(cut.output)) == 3
    train(cut, resume=True, progress=False, measure_untrained=True)
    assert_same_run(whole.output, cut.output)


def test_a_run_cut_off_before_its_first_state_starts_again(
    tree: Path, finished: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tree, tmp_path / "run")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False, measure_untrained=True)
    train(config, resume=True, progress=False, measure_untrained=True)
    assert "starts from the first epoch" in caplog.text
    assert_same_run(finished[0], config.output)


def test_resuming_a_finished_run_changes_nothing(tree: Path, finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert train(tiny_config(tree, folder), resume=True, progress=False) == metrics
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_finished_run_is_not_overwritten(tree: Path, finished: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(RunError, match="already holds a finished run"):
        train(tiny_config(tree, finished[0]), progress=False)


def test_a_run_that_came_between_the_claim_and_the_lock_is_not_taken_over(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = loop.only_run

    def late(folder: Path) -> Any:
        (folder / "config.yaml").write_text("of another run, which was killed")
        return lock(folder)

    monkeypatch.setattr(loop, "only_run", late)
    with pytest.raises(RunError, match="already holds an unfinished run"):
        train(tiny_config(tree, tmp_path / "run"), progress=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_resuming_with_other_data_is_refused(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tree, tmp_path / "run")
    monkeypatch.setattr(RunKeeper, "finish", lambda _: {})
    train(config, progress=False)
    other = write_tree(tmp_path / "other", identities=7)
    with pytest.raises(RunError, match="training identities or cameras"):
        train(override_config(config, [f"data.root={other}"]), resume=True, progress=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.slimming=[{after_block: 99, keep_ratio: 0.5}]", r"model\.slimming\[0\]\.after_block is 99"),
        ("data.image_size=[30, 32]", "30"),
        ("model.backbone.pretrained=absent.pth", r"weight file absent\.pth does not exist"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_anything_is_read_or_made(
    tmp_path: Path, override: str, message: str
) -> None:
    config = tiny_config(tmp_path / "no_data", tmp_path / "run", override)
    with pytest.raises(TrireidError, match=message):
        train(config, progress=False)
    assert not config.output.exists()


def test_a_damaged_state_says_what_to_do(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tree, tmp_path / "run")
    monkeypatch.setattr(RunKeeper, "finish", lambda _: {})
    train(config, progress=False)
    path = config.output / "state" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"state\.pt is damaged.*delete the folder"):
        train(config, resume=True, progress=False)


def test_best_is_chosen_on_held_out_identities(tree: Path, tmp_path: Path) -> None:
    config = tiny_config(tree, tmp_path / "run", "data.val_ids=2", "train.epochs=3", "data.batch_size=4")
    metrics = train(config, progress=False)
    entries = read_epochs(config.output)
    assert all(set(entry["metrics"]) == {"validation"} for entry in entries)
    scores = [entry["metrics"]["validation"]["joint"]["mAP"] for entry in entries]
    best = metrics["best"]
    assert best["epoch"] == 1 + scores.index(max(scores))
    assert (best["chosen_on"], best["chosen_by"]) == ("validation", "joint mAP")
    assert best["validation"] == entries[best["epoch"] - 1]["metrics"]["validation"]
    assert load_checkpoint(config.output / "best.safetensors").note == "best on validation"
    # Four of six identities are left to train on, and the best checkpoint gives its figures again.
    assert (metrics["num_train"], metrics["num_train_identities"]) == (16, 4)
    assert evaluate_checkpoint(config.output / "best.safetensors", progress=False)["feature"] == best["feature"]


def test_without_held_out_identities_the_choice_on_the_test_set_is_said(finished: Any) -> None:
    folder, metrics = finished
    assert metrics["best"]["chosen_on"] == "test"
    assert load_checkpoint(folder / "best.safetensors").note == "best on test"


def test_a_later_epoch_that_is_worse_does_not_become_best(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.5, 0.5, 0.1])
    monkeypatch.setattr("trireid.train.keeper.selection_score", lambda _: next(scores))
    metrics = train(tiny_config(tree, tmp_path / "run", "train.epochs=4"), progress=False)
    assert metrics["best"]["epoch"] == 2
    assert load_checkpoint(tmp_path / "run").epoch == 4


def test_testing_a_checkpoint_gives_the_figures_of_its_run(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    tested = evaluate_checkpoint(folder, progress=False)
    assert tested["feature"] == metrics["feature"]
    assert (tested["epoch"], tested["num_queries"], tested["exclude"]) == (2, 24, "camera")


def test_testing_with_withheld_modalities_differs_and_says_so(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = finished
    config = override_config(load_checkpoint(folder).config, ["evaluate.missing=[rgb, tir]"])
    tested = evaluate_checkpoint(folder, config=config, progress=False)
    assert tested["feature"] != metrics["feature"]
    assert "withheld" in tested["messages"][0]


def test_testing_under_another_image_size_is_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    config = override_config(load_checkpoint(finished[0]).config, ["data.image_size=[64, 16]"])
    with pytest.raises(CheckpointError, match="image size 32 x 16"):
        evaluate_checkpoint(finished[0], config=config, progress=False)


def test_saved_features_are_those_of_the_last_checkpoint(tree: Path, finished: Any) -> None:
    saved = load_features(finished[0])
    assert saved.query_is_gallery
    assert len(saved.query.records) == 24
    model = load_model(finished[0])
    inputs = loop.open_inputs(tiny_config(tree, finished[0]))
    batch = next(iter(inputs.test.query_loader))
    with torch.inference_mode():
        images = inputs.test.transform(batch.images, batch.present)
        output = model(images, present=batch.present, camera=batch.camera)
    assert torch.allclose(saved.query.features.features["joint"], output.embedding, atol=1e-6)


@pytest.mark.parametrize(
    ("workers", "cache"),
    [
        (0, "none"),
        pytest.param(1, "none", marks=pytest.mark.slow),
        pytest.param(0, "memory", marks=pytest.mark.slow),
        pytest.param(2, "memory", marks=pytest.mark.slow),
    ],
)
def test_a_corrupt_image_is_named_in_one_line(tmp_path: Path, workers: int, cache: str) -> None:
    root = write_tree(tmp_path / "data", identities=4)
    (root / "train_171" / "NI" / "000002_cam1_0_01.jpg").write_bytes(b"\xff\xd8\xff garbage")
    config = tiny_config(root, tmp_path / "run", f"data.workers={workers}", f"data.cache={cache}")
    with pytest.raises(DataError, match=r"NI/000002_cam1_0_01\.jpg") as caught:
        train(config, progress=False)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()  # left to the garbage collector they would take seconds to end


def test_a_loss_that_is_not_finite_stops_before_a_checkpoint(tree: Path, tmp_path: Path) -> None:
    config = tiny_config(tree, tmp_path / "run", "train.lr=1e30", "train.backbone_lr=1e30", "train.log_every=1")
    with pytest.raises(RunError, match=r"not finite in epoch 1, step [23] \(total"):
        train(config, progress=False)
    assert not list(config.output.rglob("*.safetensors"))
    assert not (config.output / "state").exists()


def test_weights_that_are_not_finite_are_not_kept(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.train_epoch

    def poison(model: torch.nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        entry = original(model, *args, **kwargs)
        next(model.parameters()).data.fill_(torch.nan)
        return entry

    monkeypatch.setattr(loop, "train_epoch", poison)
    config = tiny_config(tree, tmp_path / "run", "train.evaluate_every=2")
    with pytest.raises(RunError, match="not finite after epoch 1"):
        train(config, progress=False)
    assert not list(config.output.rglob("*.safetensors"))


def test_a_disk_too_small_is_found_before_the_first_epoch(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "NUM_WEIGHT_COPIES", 10**15)
    monkeypatch.setattr(loop, "train_epoch", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(RunError, match="free some space"):
        train(tiny_config(tree, tmp_path / "run"), progress=False)


def failing_writer(path: Path, *_: Any, **__: Any) -> Callable[[], None]:
    def write() -> None:
        raise RunError(f"cannot write {path.name}: no space left")

    return write


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_checkpoint_that_could_not_be_written_ends_the_run(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    """It is written while the run goes on, and its error still reaches the caller."""
    monkeypatch.setattr(keeper, "checkpoint_writer", failing_writer)
    settings = ("train.evaluate_every=1", "train.checkpoint_every=9")
    config = tiny_config(tree, tmp_path / "run", *settings, **{"train.epochs": epochs})
    with pytest.raises(RunError, match=r"cannot write best.safetensors: no space left"):
        train(config, progress=False)
    assert not (config.output / "metrics.json").exists()


def broken_after_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    original, started = loop.train_epoch, []

    def one_epoch(*args: Any, **kwargs: Any) -> dict[str, Any]:
        if started:
            raise KeyboardInterrupt
        started.append(True)
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "train_epoch", one_epoch)


def test_a_run_that_is_broken_off_has_its_best_on_the_disk(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = keeper.checkpoint_writer

    def slow_writer(*args: Any, **kwargs: Any) -> Callable[[], None]:
        write = original(*args, **kwargs)

        def later() -> None:
            time.sleep(0.3)
            write()

        return later

    monkeypatch.setattr(keeper, "checkpoint_writer", slow_writer)
    broken_after_the_first_epoch(monkeypatch)
    config = tiny_config(tree, tmp_path / "run", "train.evaluate_every=1", "train.checkpoint_every=9")
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False)
    assert load_checkpoint(config.output / "best.safetensors").epoch == 1


def test_a_failed_write_is_said_where_the_run_ends_by_another_error(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing_later(path: Path, *_: Any, **__: Any) -> Callable[[], None]:
        return lambda: (time.sleep(0.3), failing_writer(path)())[0]

    monkeypatch.setattr(keeper, "checkpoint_writer", failing_later)
    broken_after_the_first_epoch(monkeypatch)
    config = tiny_config(tree, tmp_path / "run", "train.evaluate_every=1", "train.checkpoint_every=9")
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False)
    assert "cannot write best.safetensors: no space left" in caplog.text


def test_a_run_that_failed_before_training_can_be_started_again(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", identities=3)
    with pytest.raises(DataError, match="identities"):
        train(tiny_config(root, tmp_path / "run", "data.batch_size=16"), progress=False)
    train(tiny_config(root, tmp_path / "run", "data.batch_size=4", "train.epochs=1"), progress=False)


def test_few_identities_a_batch_and_the_settings_are_logged_once(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, logger="trireid")
    train(tiny_config(tree, tmp_path / "run", "data.batch_size=4", "train.epochs=1"), progress=False)
    texts = [record.getMessage() for record in caplog.records]
    assert sum("only 2 identities in a batch" in text for text in texts) == 1
    assert sum("aggr_ratio: 0.4" in text for text in texts) == 1
    assert capsys.readouterr().out == ""


def test_progress_is_shown_on_the_error_stream_only(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(tree, tmp_path / "run", "train.epochs=1"), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "epoch 1/1" in shown.err
    assert "loss" in shown.err


def test_rates_follow_the_schedule_of_each_group(tree: Path, tmp_path: Path) -> None:
    settings = ("train.epochs=3", "train.warmup_epochs=1", "train.lr=0.01", "train.backbone_lr=0.001")
    config: Config = tiny_config(tree, tmp_path / "run", *settings, "train.final_lr_factor=0.5")
    train(config, progress=False)
    rates = [entry["lr"] for entry in read_epochs(config.output)]
    assert [rate["other"] for rate in rates] == pytest.approx([0.001, 0.01, 0.005])
    assert [rate["backbone"] for rate in rates] == pytest.approx([0.0001, 0.001, 0.0005])
    assert [rate["other_bias"] for rate in rates] == pytest.approx([0.002, 0.02, 0.01])


def test_bf16_runs_on_the_cpu(tree: Path, tmp_path: Path) -> None:
    config = tiny_config(tree, tmp_path / "run", "train.precision=bf16", "train.epochs=1")
    metrics = train(config, progress=False)
    assert evaluate_checkpoint(config.output, progress=False)["feature"] == metrics["feature"]
    assert all(value.dtype != torch.bfloat16 for value in weights(config.output).values())


@pytest.mark.parametrize("override", ["data.workers=2", "data.cache=none", "data.cache=disk"])
def test_neither_workers_nor_cache_change_the_run(
    tree: Path, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train(tiny_config(tree, tmp_path / "run", override), progress=False, measure_untrained=True)
    assert_same_run(finished[0], tmp_path / "run")
