"""Intervals of error rates by sampling identities: pairs of one identity are not independent. No torch.

Identities are drawn with replacement; a pair of items of the identities a and b then counts w(a) w(b) times, a pair of
items of one identity w(a) times. The rate of each sample is a quotient of two such sums.

The product of two counts has three times the variance that one independent pair has, while what all pairs of one
identity share is counted once, as it should be. So an interval of pairs is too wide, by at most sqrt(3), where pairs
are independent of each other, and right where some identities are mistaken more easily than others, as is usual.

Source: two-way resampling of Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trireid.evaluation.calibration import Curve, Floats, widened

Counts = NDArray[np.float32]


def identity_weights(num_groups: int, *, replicates: int, seed: int) -> Counts:
    """How often each of S groups is drawn in each of R samples: `(R, S)`, each row sums to S."""
    random = np.random.default_rng(seed)
    return random.multinomial(num_groups, np.full(num_groups, 1.0 / num_groups), size=replicates).astype(np.float32)


def pair_curve(
    accepted: Counts, different: Counts, weights: Counts, *, confidence: float, num_identities: int, num_pairs: int
) -> Curve:
    """The share of accepted pairs of identities at each threshold, with its interval.

    Args:
        accepted: `(T, S, S)` accepted pairs of items of two groups, each pair once.
        different: `(S, S)` all pairs.
        weights: `(R, S)`, see `identity_weights`.
        confidence: of the interval.
        num_identities: identities in these pairs.
        num_pairs: pairs of identities, for the interval of a rate of 0 or 1.
    """
    total = float(different.sum(dtype=np.float64))
    rate = accepted.sum(axis=(1, 2), dtype=np.float64) / total
    drawn = ((weights @ different) * weights).sum(axis=1, dtype=np.float64)  # (R,)
    rates = np.empty((len(rate), len(weights)))
    for place, counts in enumerate(accepted):
        with np.errstate(invalid="ignore", divide="ignore"):
            rates[place] = ((weights @ counts) * weights).sum(axis=1, dtype=np.float64) / drawn
    return _curve(rate, rates, few_factor(num_identities, confidence), confidence, num_pairs)


def group_curve(counted: Floats, all_: Floats, weights: Counts, *, confidence: float) -> Curve:
    """The share of what is counted by group, such as queries or pairs of one identity, with its interval.

    Args:
        counted: `(T, S)`.
        all_: `(S,)`.
        weights, confidence: as of `pair_curve`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = counted.sum(axis=1) / all_.sum()
        rates = (counted @ weights.T.astype(np.float64)) / (weights @ all_)  # (T, R)
    num_units = int((all_ > 0).sum())
    if num_units < 2:  # one identity says nothing about others
        return Curve(rate, np.zeros_like(rate), np.ones_like(rate))
    return _curve(rate, rates, few_factor(num_units, confidence), confidence, num_units)


def few_factor(num_units: int, confidence: float) -> float:
    """How much wider an interval is because its spread is itself estimated from few units, at least 2.

    The quantile of Student's t instead of the normal one, and the bias of the bootstrap's variance, n / (n - 1).

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.5, for the quantile.
    """
    z, freedom = NormalDist().inv_cdf(0.5 + confidence / 2.0), num_units - 1
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return t / z * math.sqrt(num_units / freedom)


def _curve(rate: Floats, rates: Floats, factor: float, confidence: float, num_units: int) -> Curve:
    """The interval between two quantiles of the samples, and no shorter than so many independent units allow."""
    outside = (1.0 - confidence) / 2.0
    ends = np.nanquantile(rates, [outside, 1.0 - outside], axis=1)  # (2, T)
    low, high = widened(rate, ends[0], factor), widened(rate, ends[1], factor)
    # With no error among n independent units the rate may still be this high; the same holds for no success.
    least = min(1.0, -math.log(outside) / num_units)
    low = np.minimum(np.minimum(low, rate), np.where(rate >= 1.0 - least, 1.0 - least, 1.0))
    high = np.maximum(np.maximum(high, rate), np.where(rate <= least, least, 0.0))
    return Curve(rate, low, high)
