"""Progress of long work, on the error stream, so that a command's result can be piped.

On a terminal it is a bar; elsewhere (a pipe, a log file) it is one line every 30 seconds and one at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trireid.errors import printable

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BEFORE_A_BAR = 1.0
"""Work that fails at once shows its error without a bar above it."""


class Bar:
    """The progress of some work, and the bar that shows it.

    Args:
        description: what is being done.
        total: number of things to do; None: not known yet.
        picture: the bar on a terminal; None: not on a terminal.
    """

    def __init__(self, description: str, total: int | None, picture: Progress | None) -> None:
        description = printable(description)
        self.description, self.done, self.total, self.note = description, 0, total, ""
        self._started = monotonic()
        self._picture = picture
        self._task = None if picture is None else picture.add_task(description, total=total, note="")

    def advance(self, number: int) -> None:
        """Count that many more things as done."""
        self.done += number
        self._draw()

    def reach(self, done: int, total: int) -> None:
        """Set how many things are done, and their total."""
        self.done, self.total = done, total
        self._draw()

    def annotate(self, note: str) -> None:
        """Replace the text at the end of the bar."""
        self.note = note
        self._draw()

    def line(self) -> str:
        """The same in words, such as `epoch 3/50: 12/53 in 41 s, loss 1.234`."""
        count = "" if self.total is None else f" {self.done}/{self.total} in"
        note = f", {self.note}" if self.note else ""
        return f"{self.description}:{count} {monotonic() - self._started:.0f} s{note}"

    def _draw(self) -> None:
        if self._picture is not None and self._task is not None:
            self._picture.start()
            self._picture.update(self._task, completed=self.done, total=self.total, note=self.note)


@contextmanager
def progress_bar(
    description: str, *, enabled: bool = True, total: int | None = None, transient: bool = False, counted: bool = True
) -> Iterator[Bar]:
    """Show the progress of the work in the block.

    Args:
        description: what is being done.
        enabled: False shows nothing.
        total: number of things to do; None: not known yet.
        transient: remove the bar at the end.
        counted: False: the work has no countable parts; show a spinner and the time.
    """
    console = Console(stderr=True)
    drawn = enabled and console.is_terminal
    picture = Progress(*_columns(counted), console=console, transient=transient) if drawn else None
    bar, ended = Bar(description, total, picture), Event()
    # A thread of its own, so that there are lines while a single step takes minutes, too.
    watch = Thread(target=_watch, args=(bar, picture, ended), name="progress", daemon=True)
    if enabled:
        watch.start()
    try:
        yield bar
    finally:
        ended.set()
        if enabled:
            watch.join()
        if picture is not None and picture.live.is_started:
            picture.stop()
        if enabled and picture is None and bar.done and not transient:
            _write(bar.line())


def _watch(bar: Bar, picture: Progress | None, ended: Event) -> None:
    """Show the bar once the work has lasted, or write a line now and then, until it has ended."""
    if picture is not None:
        if not ended.wait(SECONDS_BEFORE_A_BAR):
            picture.start()
        return
    while not ended.wait(SECONDS_BETWEEN_LINES):
        _write(bar.line())


def _write(line: str) -> None:
    sys.stderr.write(f"{printable(line)}\n")
    sys.stderr.flush()


def _columns(counted: bool) -> tuple[ProgressColumn, ...]:
    words, elapsed = TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    if not counted:
        return SpinnerColumn(), words, elapsed
    note = TextColumn("{task.fields[note]}", markup=False)
    return words, BarColumn(), MofNCompleteColumn(), elapsed, TimeRemainingColumn(), note
