"""What commands write: results to the output stream, progress and notes to the error stream.

Of several processes of one run, only the main process writes.
"""

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

from trireid.cli.wording import in_words_of_command
from trireid.errors import printable, printable_lines
from trireid.report.values import percent
from trireid.train.progress import Bar, progress_bar

ERRORS = (("FNMR at FMR 1 %", "fnmr_at_fmr_1e-2"), ("at 0.1 %", "fnmr_at_fmr_1e-3"))
"""Columns that are shown where there is a value."""
METRICS = (("mAP", "mAP"), ("mINP", "mINP"), ("rank-1", "rank1"), ("rank-5", "rank5"), ("rank-10", "rank10"))
_UNBOUNDED = 10_000  # characters
PATTERNS = {"global": "1 global", "head": "2 head", "joint": "3 joint"}


def is_main_process() -> bool:
    """True in a single process, and in the first of several that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "") -> None:
    """Write one line of a result."""
    if is_main_process():
        sys.stdout.write(f"{printable_lines(text)}\n")
        sys.stdout.flush()


def note(text: str) -> None:
    """Write one line that the reader of the result should know, on the error stream."""
    if is_main_process():
        sys.stderr.write(f"note: {printable_lines(in_words_of_command(text), indent='  ')}\n")
        sys.stderr.flush()


class _ErrorStream(logging.Handler):
    """Writes to the present error stream, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{printable_lines(in_words_of_command(self.format(record)))}\n")


def show_log() -> None:
    """Show what the library logs (loaded weights, settings) on the error stream of the main process."""
    logger = logging.getLogger("trireid")
    if not any(isinstance(handler, _ErrorStream) for handler in logger.handlers):
        logger.addHandler(_ErrorStream())
        logger.propagate = False
    logger.setLevel(logging.INFO if is_main_process() else logging.ERROR)


def progress(description: str, *, counted: bool = True) -> AbstractContextManager[Bar]:
    """A progress bar of the main process for long work, see `trireid.train.progress`; pass its `reach` to the work.

    Args:
        description: what is being done; may hold names of files.
        counted: False: a spinner, for work whose parts are not counted.
    """
    shown = printable(description)
    return progress_bar(shown, enabled=is_main_process(), transient=not counted, counted=counted)


def show_metrics(title: str, metrics: Mapping[str, Mapping[str, float | None]]) -> None:
    """Print `{"global" | "head" | "joint": {"mAP": ...}}` as a table, in percent.

    Args:
        title: what was measured, on which split.
        metrics: values in [0, 1]; a missing one is shown as a dash.
    """
    columns = metric_columns(metrics)
    rows = [
        [PATTERNS.get(name, name), *(percent(values.get(key), absent="-") for _, key in columns)]
        for name, values in metrics.items()
    ]
    show_table(title, ["feature", *(label for label, _ in columns)], rows)


def metric_columns(metrics: Mapping[str, Mapping[str, float | None]]) -> list[tuple[str, str]]:
    """Labels and keys of the columns of a table of metrics."""
    return [*METRICS, *(each for each in ERRORS if any(each[1] in values for values in metrics.values()))]


def with_errors(metrics: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The metrics of an evaluation by feature, with the false non-match rates that it has."""
    errors = metrics.get("verification", {}).get("feature", {})
    return {name: {**values, **errors.get(name, {})} for name, values in metrics["feature"].items()}


def show_rule(metrics: Mapping[str, Any]) -> None:
    """Print which rule was applied and how many pairs it hid, if known."""
    if "rule" in metrics:
        say(metrics["rule"]["text"])


def show_reranked(title: str, metrics: Mapping[str, Any]) -> None:
    """Print the `reranked` metrics of a run or test, if there are any."""
    if "reranked" in metrics:
        show_metrics(reranked_title(title, metrics), metrics["reranked"]["feature"])


def reranked_title(title: str, metrics: Mapping[str, Any]) -> str:
    """The title of the `reranked` metrics, with the settings of re-ranking."""
    again = metrics["reranked"]
    settings = f"k1 {again['k1']}, k2 {again['k2']}, lambda {again['lambda_value']:g}"
    return f"{title}, re-ranked (k-reciprocal, {settings})"


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, the first column aligned left and the others right."""
    if not is_main_process():
        return
    say(title)
    table = Table()
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="left" if index == 0 else "right")
    for row in rows:
        # As `Text`, since a name in a file may look like rich's markup.
        table.add_row(*(Text(printable(cell, limit=None)) for cell in row))
    # Rows that go into a file or a pipe are not cut.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else _UNBOUNDED).print(table)
