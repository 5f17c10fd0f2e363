"""Progress bars of long work, on the error stream, so that a command's result can be piped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass(frozen=True)
class Bar:
    """One running bar."""

    progress: Progress
    task: TaskID

    def advance(self, number: int) -> None:
        """So many more are done."""
        self.progress.update(self.task, advance=number)

    def reach(self, done: int, total: int) -> None:
        """So many of so many are done."""
        self.progress.update(self.task, completed=done, total=total)

    def say(self, note: str) -> None:
        """Replace the text at the end of the bar."""
        self.progress.update(self.task, note=note)


@contextmanager
def progress_bar(
    description: str, *, enabled: bool, total: int | None = None, transient: bool = False
) -> Iterator[Bar]:
    """Show a bar while the block runs.

    Args:
        description: what is being done.
        enabled: False shows nothing.
        total: number of things to do, None while not known.
        transient: take the bar away at the end.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=transient, disable=not enabled) as progress:
        yield Bar(progress, progress.add_task(description, total=total, note=""))
