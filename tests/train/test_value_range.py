"""Deep thermal images from training to test: the range is measured once, kept with the weights and used again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_run import tiny_config, write_tree
from trireid.config.load import load_config
from trireid.data.images import ImageError
from trireid.errors import RunError
from trireid.report.items import open_model, prepare
from trireid.report.run_folder import read_run
from trireid.train.checkpoint import load_checkpoint
from trireid.train.inputs import open_inputs
from trireid.train.loop import train
from trireid.train.testing import evaluate_checkpoint as evaluate_checkpoint


def deep_thermal(root: Path, *, split: str = "*", first: int = 28815) -> Path:
    """Turn the thermal images of a tree to centikelvin of 9 degrees."""
    for path in sorted(root.glob(f"{split}/TI/*.jpg")):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(first + grey * 4).save(path.with_suffix(".png"))
        path.unlink()
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    deep_thermal(write_tree(folder / "data"))
    train(tiny_config(folder / "data", folder / "run"), progress=False)
    return folder


def test_a_checkpoint_has_the_measured_numbers_and_the_run_the_setting(run: Path) -> None:
    assert load_config(run / "run/config.yaml").data.range.tir == "auto"
    for name in ("last.safetensors", "best.safetensors"):
        kept = load_checkpoint(run / "run" / name).config.data.range
        assert (kept.rgb, kept.nir) == ("auto", "auto")
        values = [np.asarray(Image.open(path)) for path in sorted((run / "data").glob("train*/TI/*.png"))]
        assert kept.tir == pytest.approx(np.percentile(np.stack(values), (0.1, 99.9)))


def test_the_test_of_a_checkpoint_uses_them(run: Path, tmp_path: Path) -> None:
    config = load_checkpoint(run / "run").config
    figures = evaluate_checkpoint(run / "run", progress=False)
    upstream = config.model_copy(update={"data": config.data.model_copy(update={"range": type(config.data.range)()})})
    assert evaluate_checkpoint(run / "run", config=upstream, progress=False)["feature"] == figures["feature"]
    inputs = open_inputs(tiny_config(run / "data", tmp_path))
    assert inputs.value_range == config.data.range
    opened = open_model(read_run(run / "run"))
    assert len(prepare(opened, inputs.test.query_records[:2], [])) == 2


def test_8_bit_images_under_a_deep_range_are_said(run: Path, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data")
    config = load_checkpoint(run / "run").config
    moved = config.model_copy(update={"data": config.data.model_copy(update={"root": root})})
    messages = evaluate_checkpoint(run / "run", config=moved, progress=False)["messages"]
    assert any("24 of 24 tir images have 8 bits and are used as they are" in line for line in messages)


def test_deep_test_images_of_a_model_of_8_bits_are_an_error(tmp_path: Path) -> None:
    root = deep_thermal(write_tree(tmp_path / "data"), split="test")
    with pytest.raises(ImageError, match=r"uint16 values, .*set data\.range\.tir=\[LOW,HIGH\]"):
        open_inputs(tiny_config(root, tmp_path / "run"))
    open_inputs(tiny_config(root, tmp_path / "run", "data.range.tir=[28000,30000]"))


def test_a_resume_on_other_values_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    run = tmp_path / "copy"
    (run / "run/metrics.json").unlink()
    config = tiny_config(run / "data", run / "run")
    train(config, resume=True, progress=False)
    (run / "run/metrics.json").unlink()
    for path in (run / "data").glob("train*/TI/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) + np.uint16(100)).save(path)
    with pytest.raises(RunError, match=r"range of values .*'tir': \(2\d{4}\..*give the same images"):
        train(config, resume=True, progress=False)
