"""Runs cases in forked children with limits of time and memory, several at once, and judges how each ended.

A child is forked after everything heavy is imported, so that a case costs milliseconds and cannot harm the next one.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz.outcomes import Ended, Outcome, judge
from fuzz.sandbox import run_in_sandbox

POLL_SECONDS = 0.002


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
    """

    name: str
    count: int
    prepare: Callable[[Path], object]
    strategies: dict[Strategy, float]

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


@dataclass
class _Running:
    kind: Kind
    index: int
    strategy: str
    folder: Path
    deadline: float
    hung: bool = False


def prepare(kinds: Sequence[Kind], scratch: Path) -> None:
    """Write what the cases of each kind read, in a child of its own, so that this process stays fit to be forked."""
    for kind in kinds:
        base = scratch / "base" / kind.name
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        case = Case(Random(0), Path(), base)
        running = _start(
            kind, 0, lambda case, kind=kind: kind.prepare(case.folder), case, scratch / "prepare" / kind.name
        )
        pid = next(iter(running))
        _, status, usage = os.wait4(pid, 0)
        outcome = judge(Ended(status, usage.ru_maxrss, hung=False), running[pid].folder)
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
    """Run the cases, `jobs` at a time; each is yielded when it has ended.

    Args:
        cases: kind and number of each.
        seed: of the whole run.
        scratch: where `prepare` has written.
        jobs: children at a time.
        wall_seconds: what a child may take by the clock.
        keep: the folder of a case is kept, also where the outcome is right.
    """
    left = iter(cases)
    running: dict[int, _Running] = {}
    more = True
    while more or running:
        while more and len(running) < jobs:
            try:
                kind, index = next(left)
            except StopIteration:
                more = False
                break
            random = Random(f"{seed} {kind.name} {index}")
            folder = scratch / "cases" / f"{kind.name}-{index}"
            shutil.rmtree(folder, ignore_errors=True)
            case = Case(random, scratch / "base" / kind.name, folder / "work")
            running |= _start(kind, index, kind.draw(random), case, folder, wall_seconds=wall_seconds)
        yield from _reap(running, keep=keep)


def _start(
    kind: Kind, index: int, strategy: Strategy, case: Case, folder: Path, *, wall_seconds: float = 600.0
) -> dict[int, _Running]:
    """Fork a child that runs a case, and say what it is."""
    folder.mkdir(parents=True, exist_ok=True)
    case.folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        run_in_sandbox(lambda: strategy(case), folder=folder, work=case.folder)
    return {pid: _Running(kind, index, strategy.__name__, folder, time.monotonic() + wall_seconds)}


def _reap(running: dict[int, _Running], *, keep: bool) -> Iterator[Finished]:
    """What ended since the last look; a child over its time is ended first."""
    pid, status, usage = os.wait4(-1, os.WNOHANG) if running else (0, 0, None)
    if not pid:
        now = time.monotonic()
        for late, case in running.items():
            if now > case.deadline and not case.hung:
                case.hung = True
                os.kill(late, signal.SIGABRT)  # its handler writes where it hung
        time.sleep(POLL_SECONDS)
        return
    case = running.pop(pid)
    _end_group(pid)
    outcome = judge(Ended(status, usage.ru_maxrss if usage else 0, hung=case.hung), case.folder)
    if outcome.right and not keep:
        shutil.rmtree(case.folder, ignore_errors=True)
    yield Finished(case.kind.name, case.index, case.strategy, outcome, case.folder)


def _end_group(pid: int) -> None:
    """End what a child left running, such as loader workers."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
