"""Curves of a run as figures: losses, learning rates and metrics by epoch, the CMC, and distances of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from trireid.evaluation.metrics import RankMetrics
from trireid.evaluation.verification import EqualError
from trireid.train.run_files import leaves
from trireid.visualize.text import add_legend

INK = "#767676"
"""Text and axes: readable on white and on black. Pages put the colour of their own text in its place."""

STYLES = (
    ("#d55e00", "-", "o"),
    ("#0b84c6", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#b8609a", ":", "D"),
    ("#b58900", "-", "v"),
    ("#8c6d5a", "--", "x"),
)
"""Colour, line and marker of each line: told apart without colour as well."""

Series = dict[str, tuple[list[float], list[float]]]
"""Lines by name: (epochs, values)."""


def history_series(history: Sequence[Mapping[str, Any]], key: str) -> Series:
    """The numbers of one entry of `metrics.jsonl` by epoch, nested names joined by a space.

    Args:
        history: one mapping per epoch, with "epoch"; an entry may be missing in some epochs.
        key: the entry, a number or (nested) mapping of numbers.
    """
    series: Series = {}
    for line in history:
        if key in line and "epoch" in line:
            for name, value in leaves({"": line[key]}, separator=" "):
                if isinstance(value, int | float):
                    epochs, values = series.setdefault(name.strip(), ([], []))
                    epochs.append(float(line["epoch"]))
                    values.append(float(value))
    return series


def history_figures(history: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """A figure each of the loss terms, the learning rate of each group, mAP and rank-1 by epoch, by title.

    Args:
        history: the lines of `metrics.jsonl`: {"epoch", "loss": {term: value}, "lr": {group: value}, and where there
            was an evaluation "metrics": {split: {feature: {"mAP": ..., "rank1": ...}}}}.
    """
    metrics = history_series(history, "metrics")
    return {
        "Loss": line_figure(history_series(history, "loss")),
        "Learning rate": line_figure(history_series(history, "lr"), logarithmic=True),
        "mAP in %": line_figure(_in_percent(metrics, "mAP"), from_zero=True),
        "Rank-1 in %": line_figure(_in_percent(metrics, "rank1"), from_zero=True),
    }


def compared_figures(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Figure]:
    """The total loss and every mAP of several runs by epoch, by title; lines begin with the name of their run."""
    losses: Series = {}
    metrics: Series = {}
    for run, history in histories.items():
        total = history_series(history, "loss").get("total")
        losses |= {} if total is None else {run: total}
        named = _in_percent(history_series(history, "metrics"), "mAP")
        metrics |= {f"{run}: {name}": line for name, line in named.items() if "joint" in name or len(named) == 1}
    return {"Total loss": line_figure(losses), "mAP in %": line_figure(metrics, from_zero=True)}


def _in_percent(series: Series, metric: str) -> Series:
    """The lines of one metric, without its name."""
    return {
        name.removesuffix(f" {metric}"): (epochs, [100 * value for value in values])
        for name, (epochs, values) in series.items()
        if name.endswith(metric)
    }


def cmc_curves(rankings: Mapping[str, RankMetrics], *, max_rank: int = 20) -> Figure:
    """Share of queries with a match among the first r, one line per name (feature or run)."""
    series = {
        name: (
            [float(rank) for rank in range(1, min(max_rank, len(ranking.cmc)) + 1)],
            [100 * value for value in ranking.cmc[:max_rank].tolist()],
        )
        for name, ranking in rankings.items()
    }
    return line_figure(series, horizontal="rank r", from_zero=True)


def distance_histogram(same: Tensor, different: Tensor, equal: EqualError | None, *, num_bins: int = 40) -> Figure:
    """How far apart pairs of the same identity and of different ones lie, with the threshold between them.

    Args:
        same: `(P,)` distances.
        different: `(W,)`.
        equal: the equal error rate and its threshold, None where there is none to draw.
        num_bins: bars over the range of both.
    """
    figure, axis = panel()
    edges = torch.linspace(*_range_of(torch.cat([same, different])), num_bins + 1)
    for values, (color, line, _), name in ((same, STYLES[2], "same identity"), (different, STYLES[0], "different")):
        if len(values):
            density = torch.histogram(values.float().cpu(), bins=edges, density=True).hist
            axis.stairs(density, edges, color=color, fill=True, alpha=0.25)
            axis.stairs(
                density, edges, color=color, linestyle=line, linewidth=1.6, label=f"{name} ({len(values)} pairs)"
            )
    if equal is not None:
        axis.axvline(equal.threshold, color=INK, linestyle=":", linewidth=1.6, label=f"threshold {equal.threshold:.3f}")
    axis.set_yticks([])
    axis.set_xlabel("distance", fontsize=10, color=INK)
    legend_below(axis, *axis.get_legend_handles_labels())
    return figure


def _range_of(values: Tensor) -> tuple[float, float]:
    """Smallest and largest value, a little apart where they are the same."""
    low, high = float(values.min()), float(values.max())
    return low, max(high, low + 1e-6)


def line_figure(
    series: Series, *, horizontal: str = "epoch", logarithmic: bool = False, from_zero: bool = False
) -> Figure:
    """Lines by name in one panel, from 0 up where wanted, or a sentence that there are none."""
    figure, axis = panel()
    axis.set_xlabel(horizontal, fontsize=10, color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for (name, (places, values)), (color, line, marker) in zip(series.items(), cycle(STYLES), strict=False):
        marker = marker if len(places) <= 60 else ""
        axis.plot(
            places,
            values,
            color=color,
            linestyle=line,
            marker=marker,
            markersize=3.5,
            linewidth=1.6,
            label=name,
        )
    if logarithmic and series and all(min(values) > 0 for _, values in series.values()):
        axis.set_yscale("log")
    if series and from_zero:
        axis.set_ylim(0.0, max(1.0, 1.05 * max(max(values) for _, values in series.values())))
    if series:
        legend_below(axis, axis.get_lines(), list(series))
    else:
        axis.text(0.5, 0.5, "nothing recorded", ha="center", va="center", color=INK, transform=axis.transAxes)
    return figure


def panel() -> tuple[Figure, Axes]:
    """An empty panel for a page of any colour."""
    figure = Figure(figsize=(4.8, 3.3), layout="constrained")
    figure.patch.set_alpha(0.0)
    axis = figure.subplots()
    axis.patch.set_alpha(0.0)
    axis.tick_params(which="both", colors=INK, labelsize=10)
    axis.grid(color=INK, alpha=0.25, linewidth=0.6)
    axis.spines[:].set_color(INK)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def legend_below(axis: Axes, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Names of the lines beneath the panel, where they hide nothing."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    add_legend(figure, handles, names, loc="outside lower center", ncols=2, fontsize=10, labelcolor=INK, frameon=False)
