"""Error rates of one pair of presences, from its items to curves with intervals. No torch."""

from __future__ import annotations

import numpy as np

from trireid.evaluation.calibration import (
    Curve,
    Floats,
    Identification,
    PairRates,
    least_identities,
    lowest_rate,
)
from trireid.evaluation.identity_bootstrap import Counts, group_curve, pair_curve
from trireid.evaluation.pair_counts import (
    Histogram,
    Part,
    QueryCounts,
    count_by_group,
    count_pairs,
    smallest_thresholds,
    threshold_cosine,
)

RATES_PER_DECADE = 24
"""How many false match rates in a factor of 10 have a threshold of their own."""


def pair_rates(
    first: Part,
    second: Part,
    *,
    names: tuple[str, str],
    exclude: str,
    weights: Counts,
    confidence: float,
    target: float | None,
) -> PairRates | str:
    """The error rates of all pairs of two sets of items, or why there are none.

    Args:
        first, second: the items; the same object twice where both sides have the same modalities.
        names: letters of the modalities of each.
        exclude: which pairs do not count, see `pair_counts.blocks_of_pairs`.
        weights: `(R, S)`, see `identity_bootstrap.identity_weights`.
        confidence: of the intervals.
        target: a further false match rate that gets a threshold of its own.
    """
    counted = count_pairs(first, second, exclude=exclude)
    reason = _reason_against(counted)
    if reason:
        return reason
    tried = rates_to_try(lowest_rate(counted.num_identity_pairs), target)
    thresholds = smallest_thresholds(counted.different, tried)
    groups = count_by_group(first, second, thresholds=thresholds, num_groups=weights.shape[1], exclude=exclude)
    false_match = pair_curve(
        groups.accepted,
        groups.different,
        weights,
        confidence=confidence,
        num_identities=counted.num_identities,
        num_pairs=counted.num_identity_pairs,
    )
    sides = zip(names, groups.queries, (second, first), strict=False)
    return PairRates(
        first=names[0],
        second=names[1],
        num_items=(len(first), len(second)),
        num_identities=counted.num_identities,
        num_identity_pairs=counted.num_identity_pairs,
        num_same=counted.num_same,
        num_different=counted.num_different,
        cosine=np.maximum(threshold_cosine(thresholds), -1.0),
        false_match=false_match,
        false_non_match=group_curve(groups.refused, groups.same, weights, confidence=confidence),
        identification=tuple(_identification(*side, weights, confidence) for side in sides),
    )


def _reason_against(counted: Histogram) -> str:
    """Why a pair of presences cannot be calibrated; empty if it can."""
    if not counted.num_different:
        return "no pair of items of different identities is left"
    if lowest_rate(counted.num_identity_pairs) > 1.0:
        return (
            f"its {counted.num_identities} identities have {counted.num_identity_pairs} pairs; at least "
            f"{least_identities(1.0)} identities are needed for any rate"
        )
    if not counted.num_same:
        return "no pair of items of one identity is left; identities need two items that the exclusion keeps"
    return ""


def rates_to_try(lowest: float, target: float | None) -> Floats:
    """The false match rates that get a threshold: evenly spaced on a logarithmic scale from 1 down, and the target."""
    num = int(np.ceil(-np.log10(lowest) * RATES_PER_DECADE)) + 1
    even = np.array([10.0 ** -(number / RATES_PER_DECADE) for number in range(num)])
    further = [lowest] + ([] if target is None or target < lowest else [target])
    return np.concatenate([even[even > lowest], further])


def _identification(
    query: str, counts: QueryCounts, gallery: Part, weights: Counts, confidence: float
) -> Identification:
    def curve(counted: Floats, all_: Floats) -> Curve:
        return group_curve(counted, all_, weights, confidence=confidence)

    return Identification(
        query=query,
        num_queries=int(counts.unmated.sum()),
        num_mated=int(counts.mated.sum()),
        num_gallery=len(gallery),
        num_gallery_identities=len(np.unique(gallery.identity)),
        false_positive=curve(counts.false_positive, counts.unmated),
        false_negative=curve(counts.false_negative, counts.mated),
    )
