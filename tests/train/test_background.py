"""Writing while the run goes on: the order on the disk, what gives way, and what a kill at any moment leaves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import torch

from trireid.errors import RunError
from trireid.train.background import BackgroundWriter
from trireid.train.host_copy import HostCopy

SCRIPT = Path(__file__).with_name("kill_script.py")


def test_only_a_waiting_best_that_stands_last_gives_way() -> None:
    """What comes after a state must not keep the best before it from being written first."""
    written: list[str] = []
    free, begun = Event(), Event()

    def writes(name: str) -> Callable[[], None]:
        return lambda: written.append(name)

    def slow() -> None:
        begun.set()
        assert free.wait(10)
        written.append("best 1")

    with BackgroundWriter() as writer:
        writer.start(slow, replaceable=True)
        assert begun.wait(10)
        writer.start(writes("best 2"), replaceable=True)  # does not replace the one that has begun
        writer.start(writes("best 3"), replaceable=True)
        writer.start(writes("state 3"))
        writer.start(writes("best 4"), replaceable=True)
        writer.start(writes("best 5"), replaceable=True)
        assert written == []  # nothing so far has waited
        free.set()
        writer.wait(replaceable=False)
        assert written[:3] == ["best 1", "best 3", "state 3"]
    assert written == ["best 1", "best 3", "state 3", "best 5"]


def test_after_a_failed_writing_none_begins_and_the_error_comes_at_the_next_call() -> None:
    written: list[str] = []

    given = Event()

    def fail() -> None:
        assert given.wait(10)
        raise RunError("no space left")

    with BackgroundWriter() as writer:
        writer.start(fail, replaceable=True)
        writer.start(lambda: written.append("state"))
        given.set()
        with pytest.raises(RunError, match="no space left"):
            writer.wait(replaceable=False)
    assert written == []


def test_a_copy_shares_nothing_with_the_optimiser_state_it_is_of() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimiser = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimiser.step()
    copied = HostCopy()({"model": {"weight": weight}, "optimizer": optimiser.state_dict(), "columns": (weight.T,)})
    before = copied["optimizer"]["state"][0]["exp_avg"].clone()
    lr = copied["optimizer"]["param_groups"][0]["lr"]
    optimiser.param_groups[0]["lr"] = 5.0
    optimiser.step()
    assert torch.equal(copied["optimizer"]["state"][0]["exp_avg"], before)
    assert not torch.equal(optimiser.state[weight]["exp_avg"], before)
    assert copied["optimizer"]["param_groups"][0]["lr"] == lr == 0.1
    assert copied["model"]["weight"].requires_grad is False
    assert copied["columns"][0].is_contiguous()


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_any_writing_ends_as_one_that_was_not(tree: Path, tmp_path: Path) -> None:
    """SIGKILL when half of a file is written: of `best`, of `last`, of a state, in an early and a later epoch."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tree), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed, resumed, equal") == 5
