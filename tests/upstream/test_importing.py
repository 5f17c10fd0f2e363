"""`trireid import`: files of others become files that the other commands open."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import trireid
from tiny_run import write_tree
from trireid.cli.app import app
from trireid.errors import CheckpointError
from trireid.models.backbone import create_vit
from trireid.models.weights import load_backbone_weights
from trireid.upstream.checkpoint import read_upstream
from trireid.upstream.importing import import_file

from upstream_states import DIM, IMAGE, PATCH, WIDTH, Draw, clip_visual, upstream_state

SIZES = {"patch_size": PATCH, "width": WIDTH, "depth": 2, "num_heads": 2}


def run(*arguments):
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


@pytest.mark.parametrize("head", ["hdm_atmoe", "sdtps"])
def test_an_imported_checkpoint_is_opened_by_load_model(tmp_path, head):
    torch.save(upstream_state(head, direct=0), tmp_path / "DeMobest.pth")
    result = run(tmp_path / "DeMobest.pth", tmp_path / "ours.safetensors", "--image-size", "16x8")
    assert result.exit_code == 0, result.output
    assert "none missing" in result.output
    assert ("cancels it" in result.output) == (head == "sdtps")
    images = torch.randn(2, 3, 3, *IMAGE)
    with torch.no_grad():
        ours = trireid.load_model(tmp_path / "ours.safetensors")(images).embedding
        direct = trireid.load_upstream(tmp_path / "DeMobest.pth", image_size=IMAGE)(images).embedding
    assert torch.equal(ours, direct)
    checkpoint = trireid.load_checkpoint(tmp_path / "ours.safetensors")
    assert checkpoint.label_map.to_dict() == {"identities": list("01234"), "cameras": ["1", "2", "3"]}
    assert checkpoint.note == "imported from DeMobest.pth"
    report = json.loads((tmp_path / "ours.report.json").read_text())
    assert (report["facts"]["num_classes"], report["facts"]["head"]) == (5, head)
    assert len(report["used"]) + len(report["ignored"]) == len(upstream_state(head, direct=0))


def test_an_imported_checkpoint_is_tested_on_a_data_set(tmp_path):
    root = write_tree(tmp_path / "data", identities=3, size=IMAGE)
    save_file(upstream_state("sdtps"), tmp_path / "demo.safetensors")
    import_file(tmp_path / "demo.safetensors", tmp_path / "ours.safetensors", image_size=IMAGE)
    arguments = ["test", str(tmp_path / "ours.safetensors"), f"data.root={root}", "train.device=cpu", "data.workers=0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "imported from demo.safetensors" in result.output


@pytest.mark.parametrize(("data_format", "first"), [("rgbnt100", "0001"), ("msvr310", "0"), ("rgbnt201", "1")])
def test_cameras_have_the_names_of_the_data_set(tmp_path, data_format, first):
    torch.save(upstream_state(), tmp_path / "w.pth")
    imported = read_upstream(tmp_path / "w.pth", image_size=IMAGE, data_format=data_format)
    assert imported.label_map.cameras[0] == first
    assert imported.label_map.camera_index(first) == 0


def test_clip_and_timm_weights_become_start_files(tmp_path):
    draw = Draw(1)
    clip_visual(draw, "visual.", positions=16)
    draw.normal("token_embedding.weight", 3, 3)
    torch.save(draw.state, tmp_path / "clip.pt")
    result = run(tmp_path / "clip.pt", tmp_path / "start.safetensors")
    assert result.exit_code == 0, result.output
    assert "not of CLIP's visual tower" in result.output
    assert "model.backbone.name=clip_vit_b16" in result.output
    sizes = {**SIZES, "projection": DIM}
    ours, theirs = (create_vit("clip_vit_b16", image_size=IMAGE, **sizes) for _ in range(2))
    load_backbone_weights(ours, name="clip_vit_b16", pretrained=str(tmp_path / "start.safetensors"))
    load_backbone_weights(theirs, name="clip_vit_b16", pretrained=str(tmp_path / "clip.pt"))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    done = import_file(tmp_path / "start.safetensors", tmp_path / "again.safetensors")  # timm's names
    assert (done.backbone, done.is_model, len(done.report.ignored)) == ("clip_vit_b16", False, 0)


def test_options_without_use_for_the_kind_of_file_are_refused(tmp_path):
    draw = Draw(1)
    clip_visual(draw, "visual.", positions=16)
    torch.save(draw.state, tmp_path / "clip.pt")
    torch.save(upstream_state(), tmp_path / "demo.pth")
    clip = run(tmp_path / "clip.pt", tmp_path / "o.safetensors", "--image-size", "16x8", "--cameras", "3")
    assert (clip.exit_code, "--image-size, --cameras: not used for" in clip.stderr) == (2, True)
    assert len(clip.stderr.splitlines()) == 1
    whole = run(tmp_path / "demo.pth", tmp_path / "o.safetensors", "--image-size", "16x8", "--backbone", "vit_b16")
    assert (whole.exit_code, "(--backbone) vit_b16 is for start weights" in whole.stderr) == (2, True)
    assert not (tmp_path / "o.safetensors").exists()
    odd = run(tmp_path / "demo.pth", tmp_path / "o.safetensors", "--image-size", "18x8")
    assert "give another image_size (--image-size)" in odd.stderr


@pytest.mark.parametrize("existing", ["o.safetensors", "o.report.json"])
def test_what_exists_is_written_over_only_when_asked(tmp_path, existing):
    torch.save(upstream_state(), tmp_path / "demo.pth")
    (tmp_path / existing).write_text("precious")
    arguments = (tmp_path / "demo.pth", tmp_path / "o.safetensors", "--image-size", "16x8")
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert f"{existing} exists already: give another name, or replace it with --force" in refused.stderr
    assert (tmp_path / existing).read_text() == "precious"
    assert run(*arguments, "--force").exit_code == 0
    assert trireid.load_model(tmp_path / "o.safetensors") is not None


def test_a_named_backbone_of_timm_is_checked_and_its_classifier_left_out(tmp_path):
    vit = create_vit("vit_tiny_patch16_224", image_size=(32, 32))
    state = {**vit.state_dict(), "head.weight": torch.zeros(10, 192), "head.bias": torch.zeros(10)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="width 192 with patches of 16 pixels.* give --backbone"):
        import_file(tmp_path / "w.safetensors", tmp_path / "start.safetensors")
    named = {"backbone": "vit_tiny_patch16_224", "checkpoint_image_size": (32, 32)}
    done = import_file(tmp_path / "w.safetensors", tmp_path / "start.safetensors", **named)
    assert set(done.report.ignored) == {"head.weight", "head.bias"}


def test_a_file_that_does_not_fit_shows_its_report_and_exits_with_2(tmp_path):
    state = upstream_state()
    state["surprise"] = state.pop("classifier_moe.weight")
    torch.save(state, tmp_path / "w.pth")
    result = run(tmp_path / "w.pth", tmp_path / "ours.safetensors", "--image-size", "16x8")
    assert result.exit_code == 2
    assert "no rule knows it" in result.output
    assert "needed for classifiers.head.classifier.weight" in result.output
    assert not (tmp_path / "ours.safetensors").exists()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("w.safetensors", "w.pth", "must end in .safetensors"),
        ("w.safetensors", "w.safetensors", "is the source itself"),
        ("absent.pth", "o.safetensors", "does not exist"),
        (
            "w.safetensors",
            "o.safetensors",
            "is neither a checkpoint of upstream, nor CLIP.s file",
        ),
    ],
)
def test_wrong_files_are_refused(tmp_path, source, target, message):
    save_file({"layer1.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message):
        import_file(tmp_path / source, tmp_path / target)


def test_a_checkpoint_of_ours_is_not_imported_twice(tmp_path):
    torch.save(upstream_state(), tmp_path / "w.pth")
    import_file(tmp_path / "w.pth", tmp_path / "ours.safetensors", image_size=IMAGE)
    with pytest.raises(CheckpointError, match="is a checkpoint of trireid already"):
        import_file(tmp_path / "ours.safetensors", tmp_path / "again.safetensors")


def test_links_that_lead_to_each_other_are_no_file(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    result = run(tmp_path / "a", tmp_path / "o.safetensors")
    assert (result.exit_code, "does not exist" in result.stderr) == (2, True)
