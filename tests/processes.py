"""Runs of the same script in one process or in several, which choose gloo or NCCL by their device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_processes(script: Path, *arguments: str, number: int) -> subprocess.CompletedProcess[str]:
    """Run a script under torchrun, each process with one thread."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
