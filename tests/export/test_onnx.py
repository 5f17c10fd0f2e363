"""`trireid export --to onnx`: files that give what the model gives, and refusals in one line."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import save_file
from tiny_models import KINDS, SETTINGS
from typer.testing import CliRunner

from tiny_run import write_tree
from trireid.cli.app import app
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.data.labels import LabelMap
from trireid.data.readers import scan
from trireid.embedding.embedder import Embedder
from trireid.embedding.onnx import OnnxEmbedder
from trireid.embedding.onnx_metadata import METADATA_KEY, OnnxDescription, read_description
from trireid.errors import CheckpointError, InputError, RunError
from trireid.export.onnx import export_onnx
from trireid.export.parity import TOLERANCE, ParityError
from trireid.models.build import build_model
from trireid.train.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data"))


def checkpoint(folder, tree, kind, *overrides):
    """A checkpoint of a kind of model that never trained."""
    config = override_config(Config(), [f"data.root={tree}", *SETTINGS, *KINDS[kind], *overrides])
    label_map = LabelMap.from_records(scan("rgbnt201", tree).train)
    torch.manual_seed(0)
    model = build_model(
        config.model, image_size=config.data.image_size, num_classes=len(label_map.identities),
        num_cameras=len(label_map.cameras), load_pretrained=False,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = folder / "model.safetensors"
    save_checkpoint(path, model, config=config, label_map=label_map, epoch=0)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SDTPS after cuts", {"check": ("openvino",)}),
        ("HDM + ATMoE", {"check": ("openvino",), "opset": 20}),
        ("SDTPS reference", {"half": True}),
        ("no head", {"int8": True}),
        ("DINOv2", {"modalities": ("tir", "rgb"), "check": ("openvino",)}),
        ("DINOv3", {"check": ("openvino",)}),
        ("SigLIP", {"half": True}),
    ],
)
def test_a_file_gives_what_the_model_gives(tmp_path, tree, kind, options, capfd):
    done = export_onnx(checkpoint(tmp_path, tree, kind), tmp_path / "model.onnx", **options)
    assert capfd.readouterr() == ("", "")  # the exporter's own lines stay away from the terminal
    model = onnx.load(done.path)
    onnx.checker.check_model(model)
    fixed = "modalities" in options
    assert [each.name for each in model.graph.input] == ["images", *([] if fixed else ["present"]), "camera"]
    presences = {row.presence for row in done.parity.rows}
    assert presences == {"rgb+tir"} if fixed else len(presences) == 8
    assert {row.batch for row in done.parity.rows} == {1, 3, 8}
    assert max(max(row.errors.values()) for row in done.parity.rows) <= TOLERANCE[done.description.precision]
    saved = json.loads((tmp_path / "model.onnx.parity.json").read_text(encoding="utf-8"))
    assert saved["passed"] is True
    assert saved["images"] == f"test images of {tree}"
    assert no_dynamic_operator(model)
    stored = {each.key: each.value for each in model.metadata_props}
    assert read_description(stored, source="model.onnx") == done.description
    assert model.opset_import[0].version == options.get("opset", 18)


def no_dynamic_operator(model):
    """Whether every operator gives a shape that follows from the shapes of its inputs, and every K is constant."""
    found = Counter(node.op_type for node in model.graph.node)
    made = {name: node for node in model.graph.node for name in node.output}
    constants = {each.name for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "TopK" and node.input[1] not in constants:
            assert made[node.input[1]].op_type == "Constant"
    return not set(found) & {"NonZero", "Compress", "Unique", "Loop", "If", "Scan", "NonMaxSuppression"}


def test_wrong_arguments_are_one_line_before_any_work(tmp_path):
    missing = tmp_path / "no.safetensors"
    refused = {
        "must end in .onnx": {"out": tmp_path / "model.bin"},
        "opset is 11; the exporter writes opsets 18 to 25": {"opset": 11},
        "name one or more of rgb, nir, tir": {"modalities": ("red",)},
        "allowed is openvino": {"check": ("tensorrt",)},
        "half and int8 are two precisions": {"half": True, "int8": True},
    }
    for message, options in refused.items():
        with pytest.raises(InputError, match=message):
            export_onnx(missing, **{"out": tmp_path / "model.onnx", **options})
    with pytest.raises(CheckpointError, match="does not exist"):
        export_onnx(missing, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_installed_is_named_with_its_remedy(tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(InputError, match=r"package onnxscript, which is not installed: pip install 'trireid\[onnx\]'"):
        export_onnx(tmp_path / "no.safetensors", tmp_path / "model.onnx")


def test_modalities_that_the_model_never_saw_are_refused(tmp_path, tree):
    path = checkpoint(tmp_path, tree, "no head", "data.modalities=[rgb, nir]")
    with pytest.raises(InputError, match="trained with rgb,nir alone"):
        export_onnx(path, tmp_path / "model.onnx", modalities=("rgb", "tir"))


class FakeFile:
    """Stands for the traced file where a test is about what happens to it."""

    graph = onnx.helper.make_graph([], "g", [], [])

    def SerializeToString(self):
        return b"an exported file"


@pytest.fixture
def traced(monkeypatch):
    """An export whose tracing and running take no time; its outputs are those of no model."""
    monkeypatch.setattr("trireid.export.onnx.trace", lambda *arguments, **named: FakeFile())
    monkeypatch.setattr(
        "trireid.export.writing.open_runtime",
        lambda name, path: lambda inputs: {name: torch.zeros(8, 96).numpy() for name in ("global", "head", "joint")},
    )


def test_a_file_that_differs_is_not_left_and_an_older_one_stays(tmp_path, tree, traced):
    path = checkpoint(tmp_path, tree, "no head")
    target = tmp_path / "model.onnx"
    target.write_bytes(b"older")
    with pytest.raises(ParityError, match="not kept"):
        export_onnx(load_checkpoint(path), target)
    assert target.read_bytes() == b"older"
    assert {each.name for each in tmp_path.iterdir()} == {"model.onnx", "model.safetensors"}


def test_a_full_disk_is_one_line(tmp_path, tree, traced, monkeypatch):
    path = checkpoint(tmp_path, tree, "no head")

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(RunError, match=r"No space left on device\): free some space or choose another folder$"):
        export_onnx(path, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_description_that_is_absent_damaged_or_of_another_version_is_one_line():
    with pytest.raises(CheckpointError, match="trireid did not write it"):
        read_description({}, source="model.onnx")
    for text in ("{", "{}", json.dumps({"format": 2}), json.dumps({"format": 1, "surprise": 1})):
        with pytest.raises(CheckpointError, match="export it again") as caught:
            read_description({METADATA_KEY: text}, source="model.onnx")
        assert "\n" not in str(caught.value)
    assert OnnxDescription.model_fields["format"].default == 1


@pytest.mark.slow
def test_the_command_prints_its_check_and_the_vectors_are_those_of_the_embedder(tmp_path, tree):
    path = checkpoint(tmp_path, tree, "SDTPS sound")
    target = tmp_path / "model.onnx"
    done = CliRunner().invoke(app, ["export", str(path), "--out", str(target), "--check", "openvino"])
    assert done.exit_code == 0, done.output
    assert "OpenVINO, rgb+nir+tir" in done.stdout
    assert f"checked: {target}.parity.json" in done.stdout
    assert "Warning" not in done.stderr
    pictures = sorted((tree / "test" / "RGB").iterdir())[:5]
    items = [{"rgb": each, "tir": tree / "test" / "TI" / each.name} for each in pictures] + [{"rgb": pictures[0]}]
    found, expected = OnnxEmbedder(target, batch_size=4).embed(items), Embedder(path, device="cpu").embed(items)
    np.testing.assert_allclose(found.vectors, expected.vectors, rtol=1e-4, atol=1e-5 * np.abs(expected.vectors).max())
    assert (found.model, found.items) == (expected.model, expected.items)
    np.testing.assert_array_equal(found.present, expected.present)


def test_a_checkpoint_of_another_version_and_an_unknown_target_are_refused(tmp_path):
    path, out = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    save_file({"weight": np.zeros(1, np.float32)}, path, metadata={"trireid_format": "99"})
    done = CliRunner().invoke(app, ["export", str(path), "--out", str(out)])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {path} has checkpoint format 99, this version reads ")
    assert done.stderr.count("\n") == 1
    done = CliRunner().invoke(app, ["export", str(path), "--out", str(out), "--to", "tensorrt"])
    assert done.exit_code == 2
    assert "'tensorrt' is not one of 'onnx', 'torch'" in " ".join(done.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_refuses_in_one_line(tmp_path):
    arguments = ["export", str(tmp_path / "no.safetensors"), "--out", str(tmp_path / "model.onnx"), "--opset", "11"]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stderr) == (2, "error: opset is 11; the exporter writes opsets 18 to 25\n")
