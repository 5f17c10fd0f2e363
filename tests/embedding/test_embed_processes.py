"""`trireid embed` in two processes, and killed again and again: the same bytes as in one go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import run_processes
from tiny_run import untrained_run, write_tree

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, time
from trireid.embedding import sharded

write, sharded.PART = sharded._write_part, 4
if sys.argv[1] != "0":
    seconds = sys.argv[1]
    sharded._write_part = lambda *arguments: (write(*arguments), time.sleep(float(seconds)))
del sys.argv[1]
from trireid.cli import main
main()
"""
SUFFIXES = (".csv", ".safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, a script that embeds in parts of four items, and what it gives in one go."""
    folder = tmp_path_factory.mktemp("embed")
    tree = write_tree(folder / "tree", identities=5)
    run = untrained_run(tree, folder / "run", "evaluate.batch_size=2")
    script = folder / "embed.py"
    script.write_text(SCRIPT)
    arguments = ["embed", str(run), str(tree / "test"), "--out"]
    done = start(script, "0", *arguments, str(folder / "whole"))
    assert done.wait(120) == 0
    return folder, script, arguments


def start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as launchers set it: the last digits depend on it
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def same(folder: Path, name: str) -> bool:
    return all((folder / f"{name}{end}").read_bytes() == (folder / f"whole{end}").read_bytes() for end in SUFFIXES)


def test_a_run_that_is_killed_goes_on_and_gives_the_same_bytes(made):
    folder, script, arguments = made
    parts = folder / "killed.parts"
    for kills in range(1, 4):
        process = start(script, "0.5", *arguments, folder / "killed", "--resume")
        ends = time.monotonic() + 120
        while len(list(parts.glob("*.safetensors"))) < kills and time.monotonic() < ends:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "killed.csv").exists()
    assert len(list(parts.glob("*.safetensors"))) >= 3
    assert start(script, "0", *arguments, folder / "killed", "--resume").wait(120) == 0
    assert same(folder, "killed")
    assert not parts.exists()


@pytest.mark.ddp
def test_two_processes_share_the_work_and_give_the_same_bytes(made):
    folder, script, arguments = made
    done = run_processes(script, "0", *arguments, str(folder / "shared"), number=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "20 rgb+nir+tir" in done.stdout
    assert same(folder, "shared")
    bad = folder / "bad.csv"
    bad.write_text("rgb\n" + "".join(f"none-{number}.jpg\n" for number in range(9)))
    done = run_processes(script, "0", *arguments[:2], str(bad), "--out", str(folder / "never"), number=2)
    assert done.returncode != 0
    assert "No such file" in done.stderr
    assert not (folder / "never.safetensors").exists()
