"""The runner of the broken inputs sees every wrong outcome; a twentieth of the inputs (all: `make fuzz`)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuzz.runner import Kind, prepare, run_cases
from fuzz.sandbox import WrongResult
from trireid.errors import InputError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and reads /proc")


def works(case):
    (case.folder / "result.txt").write_text("good")


def refused(case):
    raise InputError("a line that says what to do")


def traceback(case):
    raise KeyError("x")


def wrong_result(case):
    raise WrongResult("5")


def hangs(case):
    time.sleep(60)


def two_lines(case):
    raise InputError("a line\nand another")


def exit_code_3(case):
    raise SystemExit(3)


def error_with_exit_code_0(case):
    sys.stderr.write("error: something\n")


def control_characters(case):
    sys.stdout.write("\x1b[31mred\n")


def words_of_a_library(case):
    os.write(2, b"Corrupt data\n")


def writes_outside(case):
    (case.folder.parent.parent / "elsewhere.txt").write_text("x")


def tries_in_vain(case):
    Path("~/result.txt").expanduser().write_text("good")  # in a home of the case's own
    Path("/proc").mkdir(exist_ok=True)
    Path("/proc/x").mkdir()


def runs_something(case):
    subprocess.run(["true"], check=True)


def temporary_file_left(case):
    (case.folder / "x.tmp").write_text("")


def memory(case):
    bytearray(2**40)


EXPECTED = {
    works: "works", refused: "refused", traceback: "traceback", wrong_result: "wrong result", hangs: "hangs",
    two_lines: "not one line of error", exit_code_3: "exit code 3", error_with_exit_code_0: "error with exit code 0",
    control_characters: "control characters", words_of_a_library: "words of a library",
    writes_outside: "writes outside", tries_in_vain: "traceback",
    runs_something: "runs something", temporary_file_left: "temporary file left",
    memory: "traceback",
}  # fmt: skip


@pytest.mark.slow
def test_every_wrong_outcome_is_seen(tmp_path: Path) -> None:
    kinds = [Kind(strategy.__name__, 1, lambda folder: None, {strategy: 1.0}) for strategy in EXPECTED]
    prepare(kinds[:1], tmp_path)
    cases = [(kind, 0) for kind in kinds]
    found = list(run_cases(cases, seed=1, scratch=tmp_path, jobs=4, wall_seconds=1.5))
    outcomes = {finished.kind: finished.outcome.name for finished in found}
    assert outcomes == {strategy.__name__: name for strategy, name in EXPECTED.items()}
    kept = {finished.kind for finished in found if finished.folder.exists()}
    assert kept == {strategy.__name__ for strategy in EXPECTED} - {"works", "refused"}


def dies(case):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_case_that_takes_its_child_along_harms_no_other(tmp_path: Path) -> None:
    expected = {works: "works", traceback: "traceback", dies: "hangs"}
    kind = Kind("mixed", 40, lambda folder: None, {works: 6, traceback: 2, dies: 1}, quick=frozenset(expected))
    found = list(run_cases([(kind, index) for index in range(40)], seed=1, scratch=tmp_path, jobs=2))
    assert sorted(finished.index for finished in found) == list(range(40))
    assert {finished.strategy for finished in found} == {strategy.__name__ for strategy in expected}
    names = {strategy.__name__: name for strategy, name in expected.items()}
    assert all(finished.outcome.name == names[finished.strategy] for finished in found)


@pytest.mark.slow
def test_broken_input_works_or_is_refused_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fuzz", "--share", "0.05", "--seconds", "300", "--scratch", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"(\d+) of (\d+) inputs, 0 wrong", done.stdout)
    assert counts
    assert int(counts[2]) >= 500
