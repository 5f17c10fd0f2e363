"""Verification: distances of matching and other pairs of a ranking, and the threshold of the equal error rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_curve
from torch import Tensor

from trireid.errors import InputError
from trireid.evaluation.protocols import ranking_masks
from trireid.types import Labels, Protocol

MOST_PAIRS = 1_000_000
"""Most pairs of each kind for an equal error rate; of more, every n-th is taken."""


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
    is_same = np.concatenate([np.ones(len(same)), np.zeros(len(different))])
    nearness = -np.concatenate([same.cpu().numpy(), different.cpu().numpy()])
    accepted, found, thresholds = roc_curve(is_same, nearness, drop_intermediate=False)
    refused = 1.0 - found
    best = int(np.abs(refused - accepted).argmin())
    return EqualError(rate=float((refused[best] + accepted[best]) / 2), threshold=float(-thresholds[best]))
