"""A training that starts from another run: what fits is taken, what does not is named, part by part."""

import logging

import pytest
import torch
from typer.testing import CliRunner

from tiny_run import untrained_run, write_tree
from trireid.cli.app import app
from trireid.config.load import override_config
from trireid.data.labels import LabelMap
from trireid.errors import CheckpointError
from trireid.models.build import build_model
from trireid.train.checkpoint import load_checkpoint
from trireid.train.loop import train
from trireid.train.starting import fill_from, start_checkpoint

CUT = "model.slimming=[{after_block: 1, keep_ratio: 1.0}]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    root = write_tree(folder / "data", identities=4)
    return untrained_run(root, folder / "run", "model.backbone.depth=2")


def settings(run, *overrides):
    own = load_checkpoint(run).config
    changes = ["model.backbone.pretrained=" + str(run), f"output={run.parent}/tuned", *overrides]
    return override_config(own, changes)


def started(run, *overrides, identities=None, cameras=None):
    """A fresh model of these settings, filled, the same before, and the lines."""
    config = settings(run, *overrides)
    checkpoint = start_checkpoint(config)
    label_map = LabelMap(
        identities or checkpoint.label_map.identities, cameras if cameras is not None else checkpoint.label_map.cameras
    )
    torch.manual_seed(9)
    model = build_model(
        config.model,
        image_size=config.data.image_size,
        num_classes=len(label_map.identities),
        num_cameras=len(label_map.cameras),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lines = fill_from(model, checkpoint, config=config, label_map=label_map)
    return model.state_dict(), before, checkpoint.model_state, lines


def equal(state, other, prefix):
    names = [name for name in state if name.startswith(prefix)]
    assert names
    return all(name in other and torch.equal(state[name], other[name]) for name in names)


def test_the_same_model_on_the_same_data_takes_everything(run):
    state, _, saved, lines = started(run)
    assert state.keys() == saved.keys()
    assert equal(state, saved, "")
    assert len(lines) == 2
    assert "camera embedding: 2 of 2 cameras have the vector of their name" in lines[1]


@pytest.mark.parametrize(
    ("overrides", "labels", "kept", "fresh", "words"),
    [
        ([], {"identities": tuple("abc")}, ["head.", "pife."], ["classifiers."], "other identities (4 there, 3 here)"),
        (["model.head=hdm"], {}, ["pife."], ["head."], "sdtps there, hdm here"),
        (["model.sdtps.beta=0.1"], {}, ["pife."], ["head."], "other settings (model.sdtps: beta)"),
        (["data.image_size=[64, 32]"], {}, ["pife."], ["head."], "tensors differ in name or shape"),
        (["model.pife=false"], {}, ["head."], [], "PIFE (4 tensors): this model has none"),
        ([CUT], {}, ["head."], ["backbone.predictors."], "starts fresh"),
        ([], {"cameras": ()}, ["head."], [], "camera embedding: this model has none"),
    ],
)
def test_what_means_something_else_starts_fresh_and_is_named(run, overrides, labels, kept, fresh, words):
    state, before, saved, lines = started(run, *overrides, **labels)
    assert any(words in line and line.startswith("not taken: ") for line in lines), lines
    assert equal(state, saved, "backbone.vit.blocks.")
    assert all(equal(state, saved, prefix) for prefix in kept)
    assert all(equal(state, before, prefix) for prefix in fresh)


def test_cameras_go_by_their_names_and_others_get_the_mean(run):
    table = load_checkpoint(run).model_state["backbone.camera_embedding.weight"]
    state, _, _, lines = started(run, cameras=("2", "7"))
    torch.testing.assert_close(
        state["backbone.camera_embedding.weight"], torch.stack([table[1], table.mean(dim=0)]), rtol=0, atol=0
    )
    assert "1 of 2 cameras have the vector of their name, 1 the mean of the 2" in lines[1]
    state, _, _, _ = started(run, "data.format=msvr310")  # camera 1 of another data set is another camera
    assert torch.equal(state["backbone.camera_embedding.weight"], table.mean(dim=0).expand(2, -1))


@pytest.mark.parametrize("override", ["model.backbone.num_heads=4", "model.backbone.name=vit_tiny_patch16_224"])
def test_another_kind_of_vit_is_refused_though_its_shapes_agree(run, override):
    with pytest.raises(CheckpointError, match=r"holds the backbone tiny with num_heads=2, the settings say"):
        start_checkpoint(settings(run, override))


@pytest.mark.parametrize("name", ["", "last.safetensors"])
def test_a_run_is_started_from_a_folder_or_file_and_says_what_was_taken(run, tmp_path, caplog, name):
    config = settings(run, f"model.backbone.pretrained={run / name}", f"output={tmp_path}", "train.epochs=1")
    with caplog.at_level(logging.INFO, logger="trireid"):
        train(config, progress=False)
    assert "taken from" in caplog.text
    assert "beside the ViT: PIFE (4 tensors), head" in caplog.text


def test_weights_that_do_not_fit_are_refused_before_any_image_is_read(run, tmp_path):
    config = settings(run, "model.backbone.depth=3", f"output={tmp_path}/out", "data.root=/nowhere")
    with pytest.raises(CheckpointError, match="does not fit the backbone: 12 missing"):
        train(config, progress=False)


@pytest.mark.parametrize("name", ["", "last.safetensors"])
def test_import_of_a_run_says_how_to_start_from_it(run, tmp_path, name):
    result = CliRunner().invoke(app, ["import", str(run / name), str(tmp_path / "o.safetensors")])
    assert result.exit_code == 2
    assert (
        f"of trireid already: test it as it is, or start a training from it with model.backbone.pretrained={run}"
        in (result.stderr)
    )
