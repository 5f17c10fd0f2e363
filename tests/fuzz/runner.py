"""Runs cases in forked children with limits of time and memory, several at once, and judges how each ended.

A child is forked after everything heavy is imported, so that a case costs milliseconds and cannot harm the next one.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from fuzz.outcomes import Ended, Outcome, judge
from fuzz.sandbox import SEEN, Task, run_in_sandbox

POLL_SECONDS = 0.002
TOGETHER = 16  # quick cases in one child: a fork takes longer than they do


@dataclass(frozen=True)
class Case:
    """One input: what draws it, what it may read and where it may write.

    Attributes:
        random: draws everything of this case; seeded by seed, kind and index alone.
        base: files that the kind prepared once, to be read and copied only.
        folder: an empty folder of its own, the working directory while it runs.
    """

    random: Random
    base: Path
    folder: Path

    def describe(self, *words: object) -> None:
        """Keep a line that says what the input is; it is shown where the outcome is wrong."""
        with (self.folder.parent / "input.txt").open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(" ".join(str(word) for word in words)[:2000] + "\n")


Strategy = Callable[[Case], object]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: on the command line and in the table.
        count: inputs of a whole run.
        prepare: writes what all cases read, once.
        strategies: makes an input and gives it to the package, each with its share.
        quick: those of them that call functions alone and leave nothing behind in the process; several share a child.
    """

    name: str
    count: int
    prepare: Callable[[Path], object]
    strategies: dict[Strategy, float]
    quick: frozenset[Strategy] = frozenset()

    def draw(self, random: Random) -> Strategy:
        """The strategy of a case."""
        return random.choices(list(self.strategies), list(self.strategies.values()))[0]


@dataclass(frozen=True)
class Finished:
    """A case that ran, with what came of it; its folder is kept where the outcome is wrong."""

    kind: str
    index: int
    strategy: str
    outcome: Outcome
    folder: Path


@dataclass(frozen=True)
class _Planned:
    """A case with its strategy and the folder of its own."""

    kind: Kind
    index: int
    strategy: Strategy
    case: Case

    @property
    def folder(self) -> Path:
        return self.case.folder.parent

    @property
    def alone(self) -> bool:
        """Whether it needs a child of its own."""
        return self.strategy not in self.kind.quick

    @property
    def has_ended(self) -> bool:
        return (self.folder / SEEN).exists()


@dataclass
class _Running:
    """A child, the cases that it runs one after the other, and until when its present one may take."""

    group: list[_Planned]
    deadline: float
    ended: int = 0
    hung: bool = False


def prepare(kinds: Sequence[Kind], scratch: Path) -> None:
    """Write what the cases of each kind read, in a child of its own, so that this process stays fit to be forked."""
    for kind in kinds:
        base, folder = scratch / "base" / kind.name, scratch / "prepare" / kind.name
        shutil.rmtree(base, ignore_errors=True)
        for each in (base, folder):
            each.mkdir(parents=True, exist_ok=True)
        pid = os.fork()
        if pid == 0:
            run_in_sandbox([Task(lambda kind=kind, base=base: kind.prepare(base), folder, base)])  # type: ignore[misc]
        outcome = judge(Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), folder)
        if not outcome.right:
            raise SystemExit(f"the inputs of {kind.name} cannot be prepared: {outcome.name}: {outcome.detail}")


def run_cases(
    cases: Iterable[tuple[Kind, int]],
    *,
    seed: int,
    scratch: Path,
    jobs: int,
    wall_seconds: float = 60.0,
    keep: bool = False,
) -> Iterator[Finished]:
    """Run the cases, `jobs` children at a time; each case is yielded when its child has ended.

    Args:
        cases: kind and number of each.
        seed: of the whole run.
        scratch: where `prepare` has written.
        jobs: children at a time.
        wall_seconds: what a case may take by the clock.
        keep: the folder of a case is kept, also where the outcome is right.
    """
    left = _groups(_plan(kind, index, seed, scratch) for kind, index in cases)
    again: deque[list[_Planned]] = deque()  # what a child that died had not come to
    running: dict[int, _Running] = {}
    while True:
        while len(running) < jobs:
            group = again.popleft() if again else next(left, None)
            if group is None:
                break
            running[_start(group)] = _Running(group, time.monotonic() + wall_seconds)
        if not running:
            return
        for child in _ended(running, wall_seconds):
            for planned, outcome in _judged(child, again):
                if outcome.right and not keep:
                    shutil.rmtree(planned.folder, ignore_errors=True)
                name = planned.strategy.__name__
                yield Finished(planned.kind.name, planned.index, name, outcome, planned.folder)


def _plan(kind: Kind, index: int, seed: int, scratch: Path) -> _Planned:
    random = Random(f"{seed} {kind.name} {index}")
    case = Case(random, scratch / "base" / kind.name, scratch / "cases" / f"{kind.name}-{index}" / "work")
    return _Planned(kind, index, kind.draw(random), case)


def _groups(cases: Iterable[_Planned]) -> Iterator[list[_Planned]]:
    """The cases of each child: one, or several of those that are quick."""
    quick: list[_Planned] = []
    for planned in cases:
        if planned.alone:
            yield [planned]
            continue
        quick.append(planned)
        if len(quick) == TOGETHER:
            yield quick
            quick = []
    if quick:
        yield quick


def _start(group: list[_Planned]) -> int:
    """Fork a child that runs some cases, and give its number."""
    for planned in group:
        shutil.rmtree(planned.folder, ignore_errors=True)
        planned.case.folder.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        run_in_sandbox([
            Task(partial(planned.strategy, planned.case), planned.folder, planned.case.folder) for planned in group
        ])  # fmt: skip
    return pid


def _ended(running: dict[int, _Running], wall_seconds: float) -> Iterator[tuple[_Running, int]]:
    """The child that ended since the last look, if there is one; a child over its time is ended."""
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid:
        _end_group(pid)
        yield running.pop(pid), os.waitstatus_to_exitcode(status)
        return
    now = time.monotonic()
    for late, child in running.items():
        if now < child.deadline or child.hung:
            continue
        ended = sum(planned.has_ended for planned in child.group)
        child.hung = ended == child.ended
        child.ended, child.deadline = ended, now + wall_seconds
        if child.hung:
            os.kill(late, signal.SIGABRT)  # its handler writes where it hung
    time.sleep(POLL_SECONDS)


def _judged(child: tuple[_Running, int], again: deque[list[_Planned]]) -> Iterator[tuple[_Planned, Outcome]]:
    """The outcomes of a child's cases; those that it did not come to are put into `again`."""
    running, code = child
    for place, planned in enumerate(running.group):
        if planned.has_ended:
            yield planned, judge(Ended(0), planned.folder)
        else:
            yield planned, judge(Ended(code, running.hung), planned.folder)
            if running.group[place + 1 :]:
                again.append(running.group[place + 1 :])
            return


def _end_group(pid: int) -> None:
    """End what a child left running, such as loader workers."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
