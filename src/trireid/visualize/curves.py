"""Curves of a run as figures: losses, learning rates and figures by epoch, and the CMC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trireid.evaluation.metrics import RankMetrics

INK = "#7a7a7a"
"""Text and axes: readable on a light and on a dark page, as the ground is left transparent."""

STYLES = (
    ("#d55e00", "-", "o"),
    ("#0b84c6", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#b8609a", ":", "D"),
    ("#b58900", "-", "v"),
    ("#7a7a7a", "--", "x"),
)
"""Colour, line and marker of each line: told apart without colour as well."""

Series = dict[str, tuple[list[float], list[float]]]
"""Lines by name: (epochs, values)."""


def history_series(history: Sequence[Mapping[str, Any]], key: str) -> Series:
    """The numbers of one entry of `metrics.jsonl` by epoch, nested names joined by a space.

    Args:
        history: one mapping an epoch, with "epoch"; an entry may be missing in some epochs.
        key: the entry, a number or (nested) mapping of numbers.
    """
    series: Series = {}
    for line in history:
        if key in line and "epoch" in line:
            for name, value in _numbers(line[key], name=""):
                epochs, values = series.setdefault(name, ([], []))
                epochs.append(float(line["epoch"]))
                values.append(value)
    return series


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Three panels: loss terms, learning rate of each group, and the figures of each evaluation.

    Args:
        history: the lines of `metrics.jsonl`: {"epoch", "loss": {term: value}, "lr": {group: value}, and where there
            was an evaluation "metrics": {split: {feature: {"mAP": ..., "rank1": ...}}}}.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.patch.set_alpha(0.0)
    loss_axis, rate_axis, metric_axis = figure.subplots(1, 3)
    _lines(loss_axis, history_series(history, "loss"), title="Loss", horizontal="epoch")
    _lines(rate_axis, history_series(history, "lr"), title="Learning rate", horizontal="epoch")
    if rate_axis.lines and all(min(line.get_ydata()) > 0 for line in rate_axis.lines):
        rate_axis.set_yscale("log")
    shown = {
        name.removesuffix(" mAP"): (epochs, [100 * value for value in values])
        for name, (epochs, values) in history_series(history, "metrics").items()
        if name.endswith("mAP")
    }
    _lines(metric_axis, shown, title="mAP in %", horizontal="epoch")
    return figure


def cmc_curves(rankings: Mapping[str, RankMetrics], *, max_rank: int = 20) -> Figure:
    """Share of queries with a match among the first r, for each feature."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    figure.patch.set_alpha(0.0)
    series = {
        name: (
            [float(rank) for rank in range(1, min(max_rank, len(ranking.cmc)) + 1)],
            [100 * value for value in ranking.cmc[:max_rank].tolist()],
        )
        for name, ranking in rankings.items()
    }
    axis = figure.subplots()
    _lines(axis, series, title="Queries with a match among the first r, in %", horizontal="rank r")
    return figure


def _numbers(value: Any, *, name: str) -> list[tuple[str, float]]:
    """All numbers of a nested mapping with their joined names."""
    if isinstance(value, Mapping):
        return [item for key, inner in value.items() for item in _numbers(inner, name=f"{name} {key}".strip())]
    return [(name, float(value))] if isinstance(value, int | float) else []


def _lines(axis: Axes, series: Series, *, title: str, horizontal: str) -> None:
    """Draw the lines of one panel, or say that there are none."""
    axis.patch.set_alpha(0.0)
    axis.set_title(title, fontsize=10, color=INK)
    axis.set_xlabel(horizontal, fontsize=9, color=INK)
    axis.tick_params(colors=INK, labelsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(color=INK, alpha=0.25, linewidth=0.6)
    axis.spines[:].set_color(INK)
    axis.spines[["top", "right"]].set_visible(False)
    for (name, (places, values)), (color, line, marker) in zip(series.items(), cycle(STYLES), strict=False):
        marker = marker if len(places) <= 60 else ""
        axis.plot(places, values, color=color, linestyle=line, marker=marker, markersize=3.5, linewidth=1.6, label=name)
    if series:
        axis.legend(fontsize=8, labelcolor=INK, framealpha=0.0)
    else:
        axis.text(0.5, 0.5, "nothing recorded", ha="center", va="center", color=INK, transform=axis.transAxes)
