"""Centring by the training features: stored with the weights, the same wherever a model is used, never mixed."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tiny_run import tiny_config
from trireid.cli.app import app
from trireid.config.load import override_config
from trireid.config.schema import EvaluateConfig
from trireid.data.images import load_images
from trireid.data.readers import scan
from trireid.data.transforms import EvaluationTransform
from trireid.embedding.embedder import Embedder
from trireid.embedding.items import Item
from trireid.errors import CheckpointError, InputError
from trireid.evaluation.feature_files import load_features
from trireid.evaluation.features import FeatureSet
from trireid.evaluation.ranking import Ranking, Side
from trireid.export.graph import ExportedModel
from trireid.train.checkpoint import build_for, checkpoint_writer, load_checkpoint, load_model
from trireid.train.evaluating import centring_notes
from trireid.train.loop import train
from trireid.train.testing import checkpoint_features, evaluate_checkpoint
from trireid.types import MODALITIES, Labels, Protocol, filled_blocks, modality_subsets

ROOT = Path(__file__).resolve().parents[2]
runner = CliRunner()


@pytest.fixture(scope="module")
def run(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("centring") / "run"
    train(tiny_config(tree, folder, "model.head=hdm", "evaluate.centring=train"), progress=False)
    return folder


def without_means(run: Path, path: Path) -> Path:
    """The checkpoint of a run as an earlier version wrote it."""
    checkpoint = load_checkpoint(run)
    given = {"config": checkpoint.config, "label_map": checkpoint.label_map, "epoch": checkpoint.epoch}
    checkpoint_writer(path, build_for(checkpoint, checkpoint.config), **given)()
    return path


def test_the_mean_of_the_training_features_is_stored_and_subtracted_in_every_block_that_is_filled(run: Path) -> None:
    checkpoint = load_checkpoint(run)
    config = checkpoint.config
    plain = build_for(checkpoint, override_config(config, ["evaluate.centring=none"])).eval()
    centred = load_model(run)
    transform = EvaluationTransform(config.data.image_size, interpolation=config.data.augmentation.interpolation)
    records = scan("rgbnt201", config.data.root).train
    images = torch.stack([transform(load_images(record)) for record in records])
    camera = torch.tensor([checkpoint.label_map.camera_index(record.camera) for record in records])
    with torch.no_grad():
        own = plain(images, camera=camera)
        for name, mean in checkpoint.centre.items():
            assert torch.allclose(mean, own.features[name].mean(dim=0), atol=1e-5)
        for subset in modality_subsets():
            present = torch.zeros(4, 3, dtype=torch.bool)
            present[:, list(subset)] = True
            before, after = plain(images[:4], present), centred(images[:4], present)
            for name, blocks in before.blocks.items():
                filled = filled_blocks(blocks, present).repeat_interleave(
                    before.features[name].shape[1] // len(blocks), 1
                )
                expected = torch.where(filled, before.features[name] - checkpoint.centre[name], 0.0)
                assert torch.allclose(after.features[name], expected, atol=1e-6)
            parts = after.features["global"].unflatten(1, (3, -1)).unbind(1)
            assert all(torch.equal(after.features[each], part) for each, part in zip(MODALITIES, parts, strict=True))
            graph = ExportedModel(centred)(images[:4], present)
            assert torch.allclose(graph["joint"], after.embedding, atol=1e-6)
        trained, as_before = centred.train()(images[:4]), plain.train()(images[:4])
        assert torch.equal(trained.features["global"], as_before.features["global"])  # training does not change
    assert set(load_checkpoint(run / "best.safetensors").centre) == {"global", "head"}


def test_a_test_and_embeddings_centre_alike_and_embeddings_of_both_kinds_never_mix(run: Path, tmp_path: Path) -> None:
    saved = load_features(run)
    records = saved.query.records
    items = [
        Item({name: str(source.path) for name, source in zip(MODALITIES, record.images, strict=True) if source},
             key=record.name, camera=record.camera)
        for record in records
    ]  # fmt: skip
    found = Embedder(run, device="cpu").embed(items)
    assert np.allclose(found.vectors, saved.query.features.features["joint"].numpy(), atol=1e-4)
    plain = Embedder(run, device="cpu", centring="none").embed(items)
    assert not found.model.makes_the_same_vectors_as(plain.model)
    assert found.model.description == f"{plain.model.description}, centred"
    assert np.abs(plain.vectors - found.vectors).max() > 1e-3
    by_camera = found.centred_by_camera()
    literal = checkpoint_features(
        run, config=override_config(load_checkpoint(run).config, ["evaluate.centring=camera"]), progress=False
    )
    assert np.allclose(by_camera.vectors, literal.query.features.features["joint"].numpy(), atol=1e-4)
    assert not by_camera.model.makes_the_same_vectors_as(found.model)
    others = found.select(range(len(found) - 1)).centred_by_camera()  # another set has other means
    assert not by_camera.model.makes_the_same_vectors_as(others.model)
    with pytest.raises(InputError, match="allowed are none and train; camera is of a set of items"):
        Embedder(run, device="cpu", centring="camera")
    with pytest.raises(InputError, match="allowed are none and train$"):
        Embedder(run, device="cpu", centring="other")


@pytest.mark.slow
def test_a_checkpoint_without_the_mean_is_refused_with_the_way_to_get_it(run: Path, tmp_path: Path) -> None:
    old, new = without_means(run, tmp_path / "old.safetensors"), tmp_path / "new.safetensors"
    with pytest.raises(CheckpointError, match="`trireid centre .*old.safetensors --out FILE.safetensors`"):
        Embedder(old, device="cpu")
    expected = evaluate_checkpoint(run, progress=False)
    tested = runner.invoke(app, ["test", str(old), "--centring", "train"])
    assert tested.exit_code == 0, tested.output
    assert "the mean of the training features is subtracted" in " ".join(tested.output.split())
    assert runner.invoke(app, ["centre", str(old), "--out", str(new)]).exit_code == 0
    taken = runner.invoke(app, ["centre", str(new), "--out", str(old)])
    assert (taken.exit_code, "is no centred checkpoint: choose another" in " ".join(taken.output.split())) == (2, True)
    assert not load_checkpoint(old).centre
    root = load_checkpoint(run).config.data.root
    done = runner.invoke(app, ["centre", str(old), "--out", str(new), "--set", f"data.root={root}"])
    assert (done.exit_code, "replaced: " in done.stderr) == (0, True)  # its own file
    done = runner.invoke(app, ["centre", str(new), "--out", str(new), "--set", "data.root=other"])
    assert (done.exit_code, "--set changes nothing" in " ".join(done.stderr.split())) == (0, True)
    wrong = runner.invoke(app, ["centre", str(old), "--out", str(new), "--set", "evaluate.centring=camera"])
    assert (wrong.exit_code, "evaluate.centring changes nothing here" in wrong.stderr) == (2, True)
    checkpoint = load_checkpoint(new)
    for name, mean in load_checkpoint(run).centre.items():
        assert torch.allclose(checkpoint.centre[name], mean, atol=1e-6)
    again = evaluate_checkpoint(new, progress=False)
    assert again["feature"]["joint"]["mAP"] == pytest.approx(expected["feature"]["joint"]["mAP"], abs=1e-6)
    broken = replace(checkpoint, centre={"global": torch.zeros(3), "head": checkpoint.centre["head"]})
    with pytest.raises(CheckpointError, match="the file is damaged; copy it again"):
        build_for(broken, broken.config)


@pytest.mark.slow
def test_the_benchmark_finds_the_metrics_of_both_kinds_from_the_files_of_a_run(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "centring.py"))
    folder = tmp_path / "grid" / "none" / "seed1"
    train(tiny_config(tree, folder, "model.head=sdtps"), progress=False)
    found = script["measure"](folder, load_features(folder), ("camera",))
    for kind in script["KINDS"]:
        config = override_config(load_checkpoint(folder).config, [f"evaluate.centring={kind}"])
        tested = evaluate_checkpoint(folder, config=config, progress=False)["feature"]
        assert {name: rules["camera"][kind] for name, rules in found.items()} == pytest.approx(
            {name: metrics["mAP"] for name, metrics in tested.items()}, abs=1e-5
        )
    assert "| none | head | camera | 1 |" in script["table"]({"none": [found]}, ("camera",))


def test_items_that_are_alone_with_their_camera_are_reported() -> None:
    number = torch.arange(5)
    labels = Labels(number, torch.tensor([0, 0, 1, 2, 2]), number, item=number)
    side = Side(FeatureSet({}, torch.ones(5, 3, dtype=torch.bool), number, {}), labels)
    (note,) = centring_notes(EvaluateConfig(centring="camera"), Ranking(side, side, Protocol("test")))
    assert "each of 3 cameras" in note
    assert note.endswith("; with a single item, whose feature becomes 0: 1")
    others = Side(FeatureSet({}, torch.ones(3, 3, dtype=torch.bool), number[:3], {}),
                  Labels(number[:3], torch.tensor([0, 7, 8]), number[:3], item=number[:3]))  # fmt: skip
    (note,) = centring_notes(EvaluateConfig(centring="camera"), Ranking(others, side, Protocol("test")))
    assert "; 2 queries of cameras that the gallery lacks are centred by the queries of their camera; " in note
    assert note.endswith(": 3")


@pytest.mark.slow
def test_centring_is_reported(run: Path, tmp_path: Path) -> None:
    tested = runner.invoke(app, ["test", str(run), "--centring", "camera"])
    assert tested.exit_code == 0, tested.output
    assert "each of 2 cameras of the gallery" in " ".join(tested.output.split())
    embed = ["embed", str(run), "--split", "test", "--out", str(tmp_path / "o"), "--centring"]
    for centring, number in (("train", 1), ("none", 0)):
        embedded = runner.invoke(app, [*embed, centring])
        assert embedded.output.count("note: centred: the mean feature of the training images is subtracted") == number
    wrong = runner.invoke(app, ["test", str(run), "--centring", "gallery"])
    assert wrong.exit_code == 2
