"""`trireid export --to torch`: programs that torch runs by itself, and refusals in one line."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from test_onnx import checkpoint
from typer.testing import CliRunner

from tiny_run import tiny_config, write_tree
from trireid.cli.app import app
from trireid.embedding.onnx_metadata import METADATA_KEY, read_description
from trireid.errors import InputError
from trireid.export.images import check_images
from trireid.export.parity import ParityError
from trireid.export.program import export_torch


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data"))


def test_images_that_show_nothing_do_not_check_a_file(tmp_path):
    """Their features may be rounding errors, which no two programs share: the weights of slots are, for instance."""
    root = write_tree(tmp_path / "data", identities=3)
    config = tiny_config(root, tmp_path / "run")
    every = sorted((root / "test" / "NI").iterdir())
    assert "test images of" in check_images(config).source
    for path in every[:2]:
        Image.new("RGB", (16, 32), "white").save(path)
    some = check_images(config)
    assert "test images of" in some.source
    assert len(some.images) == 8
    assert bool((some.images.flatten(2).std(dim=2) > 0.1).all())
    for path in every[2:]:
        Image.new("RGB", (16, 32), "white").save(path)
    for path in (root / "train_171" / "NI").iterdir():
        Image.new("RGB", (16, 32), "black").save(path)
    assert "show nothing" in check_images(config).source


def invoke(*words):
    return CliRunner().invoke(app, ["export", *map(str, words)])


@pytest.mark.slow
def test_a_program_runs_by_torch_alone_with_any_batch_and_presence(tmp_path, tree, capfd):
    path = checkpoint(tmp_path, tree, "SDTPS random", "model.backbone.depth=1")
    done = invoke(path, "--to", "torch", "--out", tmp_path / "model.pt2")
    assert done.exit_code == 0, done.output
    assert "torch, rgb+nir+tir" in done.stdout
    assert "(torch.export, fp32," in done.stdout
    saved = json.loads((tmp_path / "model.pt2.parity.json").read_text(encoding="utf-8"))
    assert saved["passed"] is True
    assert {row["batch"] for row in saved["rows"]} == {1, 3, 8}
    assert len({row["presence"] for row in saved["rows"]}) == 8
    lines = (
        "import sys, torch",
        "extra = {'trireid': ''}",
        f"model = torch.export.load({str(tmp_path / 'model.pt2')!r}, extra_files=extra).module()",
        "given = {'images': torch.zeros(5, 3, 3, 32, 16), 'present': torch.ones(5, 3, dtype=torch.bool)}",
        "found = model(**given, camera=torch.zeros(5, dtype=torch.int64))",
        "assert 'trireid' not in sys.modules",
        "print(len(found['joint']), extra['trireid'])",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, about = done.stdout.split(" ", maxsplit=1)
    described = read_description({METADATA_KEY: about}, source="model.pt2")
    assert (count, described.opset, described.modalities) == ("5", None, ("rgb", "nir", "tir"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"modalities": ("tir", "rgb")}, {"half": True}])
def test_programs_of_some_modalities_and_in_half(tmp_path, tree, options):
    path = checkpoint(tmp_path, tree, "no head", "model.backbone.depth=1")
    done = export_torch(path, tmp_path / "model.pt2", **options)
    assert done.parity.faults == []
    presences = {row.presence for row in done.parity.rows}
    assert presences == {"rgb+tir"} if "modalities" in options else len(presences) == 8


def test_a_program_that_differs_is_not_left(tmp_path, tree, monkeypatch):
    zeros = {name: torch.zeros(8, 96).numpy() for name in ("global", "head", "joint")}
    monkeypatch.setattr("trireid.export.program._program", lambda source, example: (b"a program", ["images"]))
    monkeypatch.setattr("trireid.export.writing.open_runtime", lambda name, path: lambda inputs: zeros)
    with pytest.raises(ParityError, match="not kept"):
        export_torch(checkpoint(tmp_path, tree, "no head"), tmp_path / "model.pt2")
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_model_that_torch_cannot_export_is_one_line(tmp_path, tree, monkeypatch):
    def fail(*arguments, **named):
        raise RuntimeError("the batch\nis 3")

    monkeypatch.setattr("torch.export.export", fail)
    with pytest.raises(InputError, match=r"cannot export this model \(the batch\)"):
        export_torch(checkpoint(tmp_path, tree, "no head"), tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "torch", "--out", "m.onnx"), "must end in .pt2, or the format be that of .onnx (--to)"),
        (("--to", "torch", "--out", "m.pt2", "--opset", "18"), "--opset is for --to onnx"),
        (("--to", "torch", "--out", "m.pt2", "--int8"), "--int8 is for --to onnx"),
        (("--to", "torch", "--out", "m.pt2", "--check", "openvino"), "--check is for --to onnx"),
        (("--to", "onnx", "--out", "m.onnx", "--opset", "11"), "the exporter writes opsets 18 to 25"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    done = invoke("no.safetensors", *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
