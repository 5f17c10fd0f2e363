"""Copies of this process: what they give, and that none is left, whatever ends the work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkProcess

import psutil
import pytest

from trireid.data.copies import by_copies
from trireid.errors import DataError

PROGRAM = """
import os, signal, time
from multiprocessing import active_children
from trireid.data.copies import by_copies

results = by_copies(([number] for number in range(9)), lambda unit: time.sleep(60), workers=3, ahead=6)
print(*[child.pid for child in active_children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("background", [True, False])
def test_results_come_in_order_or_when_they_are_ready_and_units_are_taken_when_needed(background: bool) -> None:
    taken, held = [], {"shared": 10}

    def units() -> Iterator[list[int]]:
        for number in range(8):
            taken.append(number)
            yield [number]

    def work(unit: list[int]) -> int:
        time.sleep(0.1 * (unit == [0]))
        return unit[0] + held["shared"]

    results = by_copies(units(), work, workers=2, ahead=4, background=background)
    assert taken == [0, 1, 2, 3]
    assert len(multiprocessing.active_children()) == 2
    found = list(results)
    assert sorted(found) == list(range(10, 18))
    assert (found == sorted(found)) is not background
    assert not multiprocessing.active_children()


def test_errors_of_the_work_an_early_end_and_a_killed_copy_leave_no_process() -> None:
    def work(unit: list[int]) -> int:
        if unit == [3]:
            raise DataError("a bad image")
        if unit == [7]:
            os.kill(os.getpid(), signal.SIGKILL)
        return unit[0]

    for numbers, message in ((range(6), "a bad image"), (range(5, 30), "ended from outside, perhaps because memory")):
        with pytest.raises(DataError, match=message) as caught:
            list(by_copies(([number] for number in numbers), work, workers=2, ahead=4))
        assert "\n" not in str(caught.value)
        assert not multiprocessing.active_children()
    results = by_copies(([0] for _ in range(9)), work, workers=2, ahead=4)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_a_copy_that_cannot_be_made_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    start = ForkProcess.start
    made: list[ForkProcess] = []

    def once(self: ForkProcess) -> None:
        if made:
            raise BlockingIOError("no further process")
        start(self)
        made.append(self)

    monkeypatch.setattr(ForkProcess, "start", once)
    with pytest.raises(BlockingIOError):
        by_copies(([0] for _ in range(9)), len, workers=2, ahead=4)
    made[0].join(5)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_copies_end_with_a_process_that_is_killed() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    copies = [psutil.Process(int(pid)) for pid in done.stdout.split() if psutil.pid_exists(int(pid))]
    _, alive = psutil.wait_procs(copies, timeout=10)
    assert not alive
