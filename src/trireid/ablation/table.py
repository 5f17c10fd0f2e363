"""The table of an ablation: metrics of its finished runs with mean and spread over the seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Literal, NotRequired, TypedDict

from trireid.ablation.grid import TABLE_FILES, Job, finished_metrics
from trireid.errors import RunError
from trireid.files import write_text

METRICS = ("mAP", "mINP", "rank1")
CHECKPOINTS: tuple[Literal["last", "best"], ...] = ("last", "best")

SeedMetrics = dict[str, dict[str, list[float]]]
"""By feature and metric, the values of all seeds, in [0, 1]."""


class TableRow(TypedDict):
    """One cell of the table.

    Attributes:
        overrides: the settings of the cell.
        seeds: those that have finished.
        cost: numbers by name, for example `{"GMAC": ..., "triplets/s": ...}`.
        last: metrics of the last checkpoints.
        best: metrics of the checkpoints that a validation split chose; absent without one.
    """

    overrides: list[str]
    seeds: list[int]
    cost: dict[str, float]
    last: NotRequired[SeedMetrics]
    best: NotRequired[SeedMetrics]


class Table(TypedDict):
    """The table of an ablation: its rows by cell, and the number of runs that have not finished."""

    cells: dict[str, TableRow]
    missing: int


def collect(jobs: Sequence[Job], *, costs: Mapping[str, Mapping[str, float]] | None = None) -> Table:
    """Metrics of all finished runs by cell, checkpoint (`last`; `best` if a validation split chose it) and feature.

    Args:
        jobs: from `plan`; those without metrics.json are counted as missing.
        costs: by cell name, for example `{"gmac": ..., "throughput": ...}`.

    Returns:
        A row per cell with a finished run.
    """
    table = Table(cells={}, missing=0)
    for job in jobs:
        if not job.is_finished:
            table["missing"] += 1
            continue
        metrics = finished_metrics(job)
        cost = dict((costs or {}).get(job.cell.name, {}))
        new = TableRow(overrides=list(job.cell.overrides), seeds=[], cost=cost)
        row = table["cells"].setdefault(job.cell.name, new)
        row["seeds"].append(job.seed)
        best = metrics.get("best")
        chosen = best["feature"] if best is not None and best["chosen_on"] == "validation" else {}
        for checkpoint, features in zip(CHECKPOINTS, (metrics["feature"], chosen), strict=True):
            for feature, values in features.items():
                columns = row.setdefault(checkpoint, {}).setdefault(feature, {metric: [] for metric in METRICS})
                for metric in METRICS:
                    columns[metric] += [values[metric]] if metric in values else []
    return table


def markdown(table: Table) -> str:
    """The table as Markdown: mean and standard deviation over seeds, in percent.

    Raises:
        RunError: no run has finished.
    """
    cells = table["cells"]
    if not cells:
        raise RunError(
            "no run of the ablation has finished, so there is no table; the .log files in its folders say why"
        )
    cost_names = sorted({name for row in cells.values() for name in row["cost"]})
    header = ["cell", "seeds", "checkpoint", "feature", *METRICS, *cost_names]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, row in cells.items():
        for checkpoint in CHECKPOINTS:
            for feature, values in row.get(checkpoint, {}).items():
                spread = [_mean_and_spread(values[metric]) for metric in METRICS]
                cost = [f"{row['cost'][key]:.3g}" if key in row["cost"] else "" for key in cost_names]
                lines.append(
                    "| " + " | ".join([name, str(len(row["seeds"])), checkpoint, feature, *spread, *cost]) + " |"
                )
    return "\n".join(lines) + "\n"


def write_table(table: Table, out: Path) -> tuple[Path, Path]:
    """Write `table.md` and `table.json` into the folder of the ablation and return their paths."""
    files = out / TABLE_FILES[0], out / TABLE_FILES[1]
    write_text(files[0], markdown(table))
    write_text(files[1], json.dumps(table, indent=1))
    return files


def _mean_and_spread(values: Sequence[float]) -> str:
    percent = [100 * value for value in values if not math.isnan(value)]
    if len(percent) < 2:
        return f"{percent[0]:.1f}" if percent else "-"
    return f"{mean(percent):.1f} ± {stdev(percent):.1f}"
