"""A run in two gloo processes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny_run import tiny_config, write_tree
from trireid.config.load import dump_config
from trireid.train.checkpoint import load_model
from trireid.train.runs import read_epochs

SCRIPT = """
import sys
from trireid.config.load import load_config
from trireid.train.loop import train

train(load_config(sys.argv[1]), progress=False)
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_share_the_batches_and_write_once(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", identities=8, per_camera=4)
    config = tiny_config(root, tmp_path / "run", "train.epochs=2")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(tmp_path / "script.py"), str(tmp_path / "config.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    entries = read_epochs(config.output)
    # 8 identities x 4 groups of 2 images make 8 batches of 8; each process takes every second one.
    assert [(entry["num_steps"], entry["num_triplets"]) for entry in entries] == [(4, 32), (4, 32)]
    assert json.loads((config.output / "environment.json").read_text())["num_processes"] == 2
    assert all(value.isfinite().all() for value in load_model(config.output).state_dict().values())
    assert not torch.distributed.is_initialized()
