"""Runs on a CUDA device, in every precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiny_run import tiny_config, write_tree
from trireid.train.checkpoint import load_checkpoint
from trireid.train.keeper import RunKeeper
from trireid.train.loop import train
from trireid.train.runs import read_epochs
from trireid.train.state import load_state
from trireid.train.testing import test_checkpoint as evaluate_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_learns_and_its_checkpoint_gives_its_figures(tmp_path: Path, precision: str) -> None:
    root = write_tree(tmp_path / "data")
    settings = ("train.device=cuda", f"train.precision={precision}", "train.epochs=6", "train.clip_grad_norm=5")
    config = tiny_config(root, tmp_path / "run", *settings, "data.workers=2")
    metrics = train(config, progress=False)
    losses = [entry["loss"]["total"] for entry in read_epochs(config.output)]
    assert losses[-1] < losses[0]
    tested = evaluate_checkpoint(config.output, progress=False)
    for name, figures in metrics["feature"].items():
        assert tested["feature"][name] == pytest.approx(figures, abs=0.02)
    state = load_checkpoint(config.output).model_state
    assert all(value.dtype not in (torch.bfloat16, torch.float16) for value in state.values())


def test_the_fp16_scaler_goes_on_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "data")
    config = tiny_config(root, tmp_path / "run", "train.device=cuda", "train.precision=fp16", "train.epochs=4")
    original = RunKeeper.save

    def stop(keeper: RunKeeper, epoch: int) -> None:
        original(keeper, epoch)
        if epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)
    state = config.output / "state" / "state.pt"
    assert load_state(state).scaler["scale"] > 1
    train(config, resume=True, progress=False)
    assert load_state(state).epoch == 4
    assert [entry["epoch"] for entry in read_epochs(config.output)] == [1, 2, 3, 4]
