"""Verification: distances of matching and other pairs of a ranking, and error rates of thresholds between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from trireid.errors import InputError
from trireid.evaluation.calibration import least_identities, lowest_rate
from trireid.evaluation.nearest import row_slices
from trireid.evaluation.protocols import ROWS, labels_to, ranking_masks, take
from trireid.types import UNKNOWN, Labels, Protocol

MOST_PAIRS = 1_000_000
"""Most pairs of each kind for an equal error rate; of more, every n-th is taken."""

FALSE_MATCH_RATES = {"fnmr_at_fmr_1e-2": 1e-2, "fnmr_at_fmr_1e-3": 1e-3}
"""The false match rates at which an evaluation reports the false non-match rate, by the name of that metric."""


@dataclass(frozen=True)
class Verification:
    """False non-match rates (FNMR) of a ranking at fixed false match rates (FMR), where its identities suffice.

    Attributes:
        feature: by feature, `FALSE_MATCH_RATES` that the identities support -> FNMR in [0, 1].
        num_identity_pairs: pairs of different identities of query and gallery.
        note: which rates the identities do not support; empty if they support all.
    """

    feature: dict[str, dict[str, float]] = field(default_factory=dict)
    num_identity_pairs: int = 0
    note: str = ""


@dataclass(frozen=True)
class EqualError:
    """The threshold at which the error rates of accepting wrong pairs and of refusing right pairs are equal.

    It decides whether two given items are the same. It is not suitable for a search: among many gallery items, some
    wrong one lies within it, see `share_named`.

    Attributes:
        rate: share of either error at the threshold, in [0, 1].
        threshold: pairs up to this distance count as the same identity.
    """

    rate: float
    threshold: float


def pair_distances(distance: Tensor, query: Labels, gallery: Labels, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Distances of the pairs that a protocol allows: of the same identity `(P,)`, and of different ones `(W,)`.

    Args: as `metrics.rank_metrics`; what the protocol excludes is in neither.
    """
    matches, excluded = ranking_masks(query, gallery, protocol)
    return distance[matches], distance[~matches & ~excluded]


def share_named(distance: Tensor, query: Labels, gallery: Labels, protocol: Protocol, threshold: float) -> float:
    """Share of queries that have an item of another identity within a threshold, in [0, 1].

    The threshold would give these queries a wrong name if their own identity were not in the gallery.

    Args: as `metrics.rank_metrics`; `threshold` as of `EqualError`.
    """
    matches, excluded = ranking_masks(query, gallery, protocol)
    return float(((distance <= threshold) & ~matches & ~excluded).any(dim=1).double().mean())


def equal_error(same: Tensor, different: Tensor, *, most_pairs: int = MOST_PAIRS) -> EqualError:
    """The equal error rate of two sets of distances, and its threshold.

    Args:
        same: `(P,)`, smaller is nearer.
        different: `(W,)`.
        most_pairs: see `MOST_PAIRS`.

    Raises:
        InputError: one of them is empty, or a distance is NaN or infinite.
    """
    if not len(same) or not len(different):
        raise InputError(
            f"an equal error rate needs pairs of the same and of different identities; given {len(same)} and "
            f"{len(different)}"
        )
    for kind, each in (("same", same), ("different", different)):
        if not bool(each.isfinite().all()):
            raise InputError(f"a distance of the {kind} pairs is NaN or infinite; leave it out, or check the features")
    same, different = (each[:: -(-len(each) // most_pairs)] for each in (same, different))
    from sklearn.metrics import roc_curve  # takes a second to import, and an evaluation does not need it

    is_same = np.concatenate([np.ones(len(same)), np.zeros(len(different))])
    nearness = -np.concatenate([same.cpu().numpy(), different.cpu().numpy()])
    accepted, found, thresholds = roc_curve(is_same, nearness, drop_intermediate=False)
    refused = 1.0 - found
    best = int(np.abs(refused - accepted).argmin())
    return EqualError(rate=float((refused[best] + accepted[best]) / 2), threshold=float(-thresholds[best]))


def supported_rates(query: Labels, gallery: Labels) -> tuple[dict[str, float], Verification]:
    """The `FALSE_MATCH_RATES` that the identities support (30 errors among their pairs), and a note on the others."""
    sides = [set(labels.identity.unique().tolist()) - {UNKNOWN} for labels in (query, gallery)]
    both, num_identities = len(sides[0] & sides[1]), len(sides[0] | sides[1])
    num_pairs = len(sides[0]) * len(sides[1]) - both - both * (both - 1) // 2  # a pair counts in one order
    supported = {name: rate for name, rate in FALSE_MATCH_RATES.items() if rate >= lowest_rate(num_pairs)}
    lacking = [rate for name, rate in FALSE_MATCH_RATES.items() if name not in supported]
    if not lacking:
        return supported, Verification(num_identity_pairs=num_pairs)
    needed = ", ".join(f"FMR {100 * rate:g} % needs {least_identities(rate)}" for rate in lacking)
    note = f"too few identities for a false non-match rate: {num_identities} have {num_pairs} pairs; {needed}"
    return supported, Verification(num_identity_pairs=num_pairs, note=note)


def false_non_match_rates(
    distance: Tensor, query: Labels, gallery: Labels, protocol: Protocol, rates: dict[str, float]
) -> dict[str, float]:
    """The share of pairs of one identity that a threshold refuses, at false match rates, exactly.

    A pair is accepted below the threshold, which is the largest distance with a false match rate of at most the given
    one; equal distances are accepted or refused together.

    Args:
        distance, query, gallery, protocol: as `metrics.rank_metrics`; what the protocol excludes does not count.
        rates: false match rates in (0, 1) by name.

    Returns:
        False non-match rates by name, in [0, 1]; empty without pairs of the same or of different identities.
    """
    if not rates:
        return {}
    query, gallery = (labels_to(labels, distance.device) for labels in (query, gallery))
    most = int(max(rates.values()) * distance.numel()) + 2
    nearest, same, num_different = distance.new_empty(0), [], 0
    for rows in row_slices(len(distance), ROWS):
        matches, excluded = ranking_masks(take(query, rows), gallery, protocol)
        known = (query.identity[rows, None] != UNKNOWN) & (gallery.identity != UNKNOWN)
        same.append(distance[rows][matches])
        different = distance[rows][~matches & ~excluded & known]
        num_different += len(different)
        nearest = torch.cat([nearest, different])
        if len(nearest) > most:
            nearest = nearest.topk(most, largest=False).values
    right, nearest = torch.cat(same), nearest.sort().values
    if not len(right) or not num_different:
        return {}
    # The first distance that must be refused; a share times a count may fall just below a whole number.
    limits = {name: nearest[int(rate * num_different * (1 + 1e-12))] for name, rate in rates.items()}
    return {name: float((right >= limit).double().mean()) for name, limit in limits.items()}
