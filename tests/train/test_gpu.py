"""Runs on a CUDA device, in every precision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from processes import run_processes
from tiny_run import tiny_config, write_tree
from trireid.config.load import dump_config
from trireid.train.checkpoint import load_checkpoint
from trireid.train.keeper import RunKeeper
from trireid.train.loop import train
from trireid.train.runs import read_epochs
from trireid.train.state import load_state
from trireid.train.testing import evaluate_checkpoint as evaluate_checkpoint

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


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices here")
@pytest.mark.parametrize("recorded", ["false", "true"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_devices_learn_what_one_does(tmp_path: Path, precision: str, recorded: str) -> None:
    """Over NCCL: the same losses as one process with the same batches, evaluation shared, one set of files."""
    root = write_tree(tmp_path / "data", identities=8, per_camera=4)
    settings = ["train.device=cuda", f"train.precision={precision}", "train.optimizer=sgd", "train.epochs=3"]
    settings += ["train.lr=0.01", "train.backbone_lr=0.01", "model.sdtps.noise=none", "model.head=sdtps"]
    settings += [f"train.cuda_graph={recorded}"]
    entries = []
    for number in (1, 2):
        config = tiny_config(root, tmp_path / f"run{number}", *settings)
        (tmp_path / "run.yaml").write_text(dump_config(config))
        script = tmp_path / "script.py"
        script.write_text(
            "import sys; from trireid.config.load import load_config; from trireid.train.loop import train\n"
            "train(load_config(sys.argv[1]), progress=False)\n"
        )
        done = run_processes(script, str(tmp_path / "run.yaml"), number=number)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "cannot be recorded" not in done.stderr
        entries.append(read_epochs(config.output))
        assert json.loads((config.output / "environment.json").read_text())["num_processes"] == number
        assert load_checkpoint(config.output).epoch == 3
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for one, two in zip(*entries, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=0, abs=tolerance)
