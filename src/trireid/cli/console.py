"""What commands write: results to the output stream, bars and notes to the error stream, once in a parallel run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trireid.cli.wording import in_own_words
from trireid.errors import printable, printable_lines
from trireid.train.progress import Bar, progress_bar

FIGURES = (("mAP", "mAP"), ("mINP", "mINP"), ("rank-1", "rank1"), ("rank-5", "rank5"), ("rank-10", "rank10"))
_UNBOUNDED = 10_000  # characters
PATTERNS = {"global": "1 global", "head": "2 head", "joint": "3 joint"}


def is_main_process() -> bool:
    """True in a single process and in the first of several that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "") -> None:
    """One line of a result."""
    if is_main_process():
        sys.stdout.write(f"{printable_lines(text)}\n")
        sys.stdout.flush()


def note(text: str) -> None:
    """One line that a reader of the result should know, on the error stream."""
    if is_main_process():
        sys.stderr.write(f"note: {printable_lines(in_own_words(text), indent='  ')}\n")
        sys.stderr.flush()


class _ErrorStream(logging.Handler):
    """Writes to the error stream of the moment, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{printable_lines(in_own_words(self.format(record)))}\n")


def show_log() -> None:
    """Show what the library logs (weights loaded, settings), on the error stream of the main process."""
    logger = logging.getLogger("trireid")
    if not any(isinstance(handler, _ErrorStream) for handler in logger.handlers):
        logger.addHandler(_ErrorStream())
        logger.propagate = False
    logger.setLevel(logging.INFO if is_main_process() else logging.ERROR)


def progress(description: str, *, counted: bool = True) -> AbstractContextManager[Bar]:
    """A bar of the main process for long work, see `trireid.train.progress`; hand its `reach` on.

    Args:
        description: what is being done; it may hold names of others.
        counted: False for work whose parts are not counted: a sign of life.
    """
    shown = printable(description)
    return progress_bar(shown, enabled=is_main_process(), transient=not counted, counted=counted)


def show_figures(title: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Print `{"global" | "head" | "joint": {"mAP": ...}}` as a table, in per cent.

    Args:
        title: what was measured, on which split.
        figures: values in [0, 1]; figures that are not there are shown as a dash.
    """
    rows = [
        [PATTERNS.get(name, name), *(_percent(values.get(key)) for _, key in FIGURES)]
        for name, values in figures.items()
    ]
    show_table(title, ["feature", *(label for label, _ in FIGURES)], rows)


def show_rule(figures: Mapping[str, Any]) -> None:
    """Print which rule was applied and how many pairs it hid, where the figures say so."""
    if "rule" in figures:
        say(figures["rule"]["text"])


def show_reranked(title: str, figures: Mapping[str, Any]) -> None:
    """Print the `reranked` figures of a run or test, where there are any."""
    if "reranked" in figures:
        again = figures["reranked"]
        settings = f"k1 {again['k1']}, k2 {again['k2']}, lambda {again['lambda_value']:g}"
        show_figures(f"{title}, re-ranked (k-reciprocal, {settings})", again["feature"])


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, the first column left and the others right aligned."""
    if not is_main_process():
        return
    say(title)
    table = Table()
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(
            *(Text(printable(cell, limit=None)) for cell in row)
        )  # a name in a file may look like rich's markup
    # A file or a pipe has no width that rows would have to be cut to.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else _UNBOUNDED).print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
