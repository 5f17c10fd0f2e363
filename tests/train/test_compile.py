"""`train.compile`: compiled blocks learn what plain ones learn, with and without cuts inside the ViT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compiling import DEVICES
from tiny_run import tiny_config, write_tree
from trireid.train.loop import train
from trireid.train.runs import read_epochs

CUTS = "model.slimming=[{after_block: 1, keep_ratio: 0.5}]"


@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path: Path, device: str) -> None:
    root = write_tree(tmp_path / "data")
    settings = (f"train.device={device}", "train.precision=fp32", "model.backbone.depth=2", "model.head=none", CUTS)
    losses = {}
    for compiled in ("false", "true"):
        config = tiny_config(root, tmp_path / compiled, *settings, "train.dense_epochs=1", f"train.compile={compiled}")
        train(config, progress=False)
        losses[compiled] = [entry["loss"]["total"] for entry in read_epochs(config.output)]
    assert losses["true"] == pytest.approx(losses["false"], rel=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("head", ["none", "sdtps", "hdm_atmoe"])
def test_a_recorded_run_has_the_losses_of_a_plain_one(tmp_path: Path, head: str) -> None:
    root = write_tree(tmp_path / "data")
    settings = ["train.device=cuda", "train.precision=fp32", "train.epochs=6", f"model.head={head}"]
    if head != "sdtps":
        settings += ["model.backbone.depth=2", CUTS, "train.dense_epochs=2"]
    losses = {}
    for recorded in ("false", "true"):
        config = tiny_config(root, tmp_path / recorded, *settings, f"train.cuda_graph={recorded}")
        train(config, progress=False)
        losses[recorded] = [entry["loss"]["total"] for entry in read_epochs(config.output)]
    assert losses["true"] == pytest.approx(losses["false"], rel=2e-2)


@pytest.mark.slow
def test_a_recording_that_is_not_possible_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(write_tree(tmp_path / "data"), tmp_path / "run", "train.device=cpu", "train.cuda_graph=true")
    train(config, progress=False)
    assert "train.cuda_graph has no effect here" in caplog.text
