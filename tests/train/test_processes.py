"""A run in two gloo processes on the CPU is the run of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes

from tiny_run import tiny_config, write_tree
from trireid.config.load import dump_config
from trireid.config.schema import Config
from trireid.train.checkpoint import load_checkpoint
from trireid.train.runs import read_epochs, read_metrics

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

SCRIPT = """
import sys
from trireid.config.load import load_config
from trireid.models.hdm import HDM
from trireid.train.loop import train

HDM.__init__.__kwdefaults__["dropout"] = 0.0  # what is drawn differs between the processes
train(load_config(sys.argv[1]), progress=False, resume="resume" in sys.argv, measure_untrained=True)
"""

TOLERANCE = 1e-4
"""Of losses and weights after 3 epochs in fp32, absolute: the processes add up in another order."""

HEADS = {
    "none": ["model.head=none"],
    "by modality": ["model.head=none", "model.global_classifier=separate"],
    "sdtps": ["model.head=sdtps", "model.sdtps.noise=none"],
    "hdm_atmoe": ["model.head=hdm_atmoe"],
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), identities=8, per_camera=4)


def run(config: Config, folder: Path, *, number: int, resume: bool = False) -> dict[str, Any]:
    """Train in so many processes; the final figures."""
    settings, script = folder / f"{config.output.name}.yaml", folder / "script.py"
    settings.write_text(dump_config(config))
    script.write_text(SCRIPT)
    done = run_processes(script, str(settings), *(["resume"] if resume else []), number=number)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = read_metrics(config.output)
    assert metrics is not None
    return metrics


def difference(one: Config, two: Config) -> float:
    """The largest one between the weights (and running statistics) of two runs."""
    first, second = (load_checkpoint(config.output).model_state for config in (one, two))
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.parametrize("head", HEADS)
def test_two_processes_learn_what_one_does(tree: Path, tmp_path: Path, head: str) -> None:
    one, two = (tiny_config(tree, tmp_path / name, "train.epochs=3", *HEADS[head]) for name in ("one", "two"))
    alone, shared = run(one, tmp_path, number=1), run(two, tmp_path, number=2)
    entries, others = read_epochs(one.output), read_epochs(two.output)
    # 8 identities x 4 groups of 2 images make 8 batches of 8.
    assert [(entry["num_steps"], entry["num_triplets"]) for entry in others] == [(8, 64)] * 3
    for entry, other in zip(entries, others, strict=True):
        assert other["loss"] == pytest.approx(entry["loss"], abs=TOLERANCE)
    assert difference(one, two) < TOLERANCE
    assert shared["feature"]["joint"]["mAP"] == pytest.approx(alone["feature"]["joint"]["mAP"], abs=0.01)
    assert json.loads((two.output / "environment.json").read_text())["num_processes"] == 2
    assert len(list((two.output / "tensorboard").iterdir())) == 1  # one process alone writes
    assert not torch.distributed.is_initialized()
