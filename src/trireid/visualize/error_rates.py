"""Error rates of a calibration as a figure: the detection error trade-off (DET) of every pair of presences."""

from __future__ import annotations

from itertools import cycle
from statistics import NormalDist

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trireid.evaluation.calibration import Calibration, Floats, PairRates
from trireid.visualize.curves import INK, STYLES, legend_below, panel

TICKS = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95)
MOST_CURVES = 6
"""As many as there are styles of lines."""
SMALLEST = 1e-5
"""Rates nearer to 0 or 1 are drawn here: their normal deviate would be far away, or infinite."""


def det_curves(calibration: Calibration, *, most: int = MOST_CURVES) -> Figure:
    """False non-match rate over false match rate, one curve for each pair of presences, with its interval as a band.

    Both axes are spaced by the normal deviate of the rate, so that scores with normal distributions give straight
    lines. Curves that are lower and further left are better.

    Args:
        calibration: what is drawn.
        most: curves; of more pairs of presences, those are drawn in which both items have the same modalities, and
            those with the most pairs of items.

    Source: Martin et al., The DET curve in assessment of detection task performance, Eurospeech 1997.
    """
    figure, axis = panel()
    shown = shown_pairs(calibration, most)
    for rates, (color, line, _) in zip(shown, cycle(STYLES), strict=False):
        across = deviate(rates.false_match.rate)
        low, value, high = (deviate(each) for each in _ordered(rates))
        axis.fill_between(across, low, high, color=color, alpha=0.15, linewidth=0)
        axis.plot(across, value, color=color, linestyle=line, linewidth=1.6, label=pair_name(rates))
    _scale(axis, shown)
    axis.set_xlabel("false match rate in %", fontsize=10, color=INK)
    axis.set_ylabel("false non-match rate in %", fontsize=10, color=INK)
    legend_below(axis, axis.get_lines(), [pair_name(rates) for rates in shown])
    return figure


def shown_pairs(calibration: Calibration, most: int = MOST_CURVES) -> list[PairRates]:
    """The pairs of presences that are drawn, in the order of the calibration."""
    ranked = sorted(calibration.rates, key=lambda each: (each.first != each.second, -each.num_same))[:most]
    return [each for each in calibration.rates if any(each is kept for kept in ranked)]


def pair_name(rates: PairRates) -> str:
    """The letters of both presences, once where they are equal."""
    return rates.first if rates.first == rates.second else f"{rates.first} - {rates.second}"


def _ordered(rates: PairRates) -> tuple[Floats, Floats, Floats]:
    return rates.false_non_match.low, rates.false_non_match.rate, rates.false_non_match.high


def deviate(rate: Floats) -> Floats:
    """The value that a standard normal variable falls below with this probability: `(T,)` -> `(T,)`."""
    inverse = NormalDist().inv_cdf
    return np.array([inverse(float(each)) for each in np.clip(rate, SMALLEST, 1.0 - SMALLEST)])


def _scale(axis: Axes, shown: list[PairRates]) -> None:
    """Axes by normal deviates, labelled in percent, as far as there are curves."""
    ends = (
        np.concatenate([each.false_match.rate for each in shown]),
        np.concatenate([end for each in shown for end in _ordered(each)[1:]]),
    )
    for rates, one in zip(ends, (axis.xaxis, axis.yaxis), strict=True):
        low, high = max(rates.min() / 2.0, SMALLEST), min(max(rates.max(), 0.02), 0.98)
        ticks = [tick for tick in TICKS if low <= tick <= high]
        one.set_ticks(deviate(np.array(ticks)).tolist(), labels=[f"{100 * tick:g}" for tick in ticks])
        limits = deviate(np.array([low, high]))
        (axis.set_xlim if one is axis.xaxis else axis.set_ylim)(float(limits[0]), float(limits[1]))
