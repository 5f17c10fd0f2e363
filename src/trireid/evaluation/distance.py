"""Euclidean distances between feature sets, block by block, so that the whole matrix need not be held.

A distance depends on its two items alone, not on the other items of a set or on the size of the blocks: pairs that are
too close for the fast way (one matrix product) are computed from their differences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trireid.errors import InputError
from trireid.evaluation.checks import check_tensors

LONGEST = 1e38
"""The largest allowed length of a feature: the distance of two such features still fits into float32."""

CLOSE = 1e-8
"""A squared distance below this share of the squared lengths is not exact to float32 when computed from them."""

ROUNDING = 1e-14
"""The same as a share of the squared length of the centre, because subtracting the centre rounds as well."""

MANY = 0.01
"""Above this share of close pairs, the differences of all pairs are faster than those of the close pairs alone."""

UNUSUAL = 16.0
"""Rows of more than this many times the median squared length do not count in a centre."""

PAIR_ELEMENTS = 2**24
"""Number of feature values that are read at once when single pairs are compared."""


@dataclass(frozen=True)
class Centred:
    """Features around a common centre, ready for `euclidean`.

    Attributes:
        features: `(n, D)` as given.
        value: `(n, D)` float64, features less the centre.
        norm: `(n,)` float64, their squared lengths.
        offset: `()` float64, the squared length of the centre.
    """

    features: Tensor
    value: Tensor
    norm: Tensor
    offset: Tensor

    def __len__(self) -> int:
        return self.norm.shape[0]

    def __getitem__(self, rows: slice) -> Centred:
        return Centred(self.features[rows], self.value[rows], self.norm[rows], self.offset)


def centred(features: Tensor, centre: Tensor) -> Centred:
    """Features `(n, D)` around a centre `(D,)` float64."""
    value = features.double() - centre
    return Centred(features, value, value.square().sum(dim=1), centre.square().sum())


def centre_of(features: Tensor) -> Tensor:
    """The mean of features `(n, D)` -> `(D,)` float64, without those of unusual length; 0 for an empty set.

    It decides how many pairs take the slow way and does not change the result.
    """
    if not len(features):
        return features.new_zeros(features.shape[1]).double()
    value = features.double()
    norm = value.square().sum(dim=1)
    usual = (norm <= UNUSUAL * norm.median()).double()
    return usual @ value / usual.sum()


def euclidean(first: Centred, second: Centred) -> Tensor:
    """Distances of all pairs around the same centre: `(Q, D)`, `(G, D)` -> `(Q, G)` float32.

    One matrix product. Where it leaves too few digits (features that are nearly equal, or much shorter than their
    centre), the differences themselves are computed.
    """
    norms = first.norm[:, None] + second.norm  # (Q, G)
    squared = torch.addmm(norms, first.value, second.value.T, alpha=-2.0)
    close = squared <= norms.mul_(CLOSE).add_(ROUNDING * first.offset)
    row, column = close.nonzero(as_tuple=True)
    if len(row) > MANY * close.numel():
        sides = first.features.double(), second.features.double()
        distance = torch.cdist(*sides, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.where(close, distance, squared.clamp_(min=0.0).sqrt_()).float()
    if len(row):
        squared[row, column] = squared_differences(first.features, second.features, row, column)
    return squared.sqrt_().float()


def squared_differences(first: Tensor, second: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Squared distances of single pairs: rows `(p,)` of `(Q, D)`, columns `(p,)` of `(G, D)` -> `(p,)` float64."""
    size = max(1, PAIR_ELEMENTS // max(1, first.shape[1]))
    return torch.cat(
        [
            (first[one].double() - second[other].double()).square().sum(dim=1)
            for one, other in zip(row.split(size), column.split(size), strict=True)
        ]
    )


def unit(features: Tensor) -> Tensor:
    """Features `(..., D)` at unit length, float32; a feature of zeros stays zeros.

    The length is taken in float64: the squares of what float32 holds may be too large or too small for float32.
    """
    value = features.double()
    length: Tensor = torch.linalg.vector_norm(value, dim=-1, keepdim=True)
    return (value / length.clamp(min=torch.finfo(torch.float64).tiny)).float()


def check_widths(first: Tensor, second: Tensor, *, name: str) -> None:
    """Raise InputError unless both are tensors `(n, D)` of the same width."""
    check_tensors(name, first, second)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(f"{name} got {tuple(first.shape)} and {tuple(second.shape)}; allowed are (Q, D) and (G, D)")


def check_features(features: Tensor, side: str, *, start: int = 0) -> None:
    """Raise InputError that names the row if a feature `(n, D)` is not finite or too long for float32 distances.

    Args:
        features: some rows of a side.
        side: name of the side in messages.
        start: number of the first of these rows.
    """
    check_tensors(f"the {side} side", features)
    length = torch.linalg.vector_norm(features.double(), dim=1)
    broken = (~(length <= LONGEST)).nonzero()
    if not len(broken):
        return
    row = int(broken[0])
    if not bool(features[row].double().isfinite().all()):
        raise InputError(
            f"the {side} feature of item {start + row} is NaN or infinite; leave it out or extract it again"
        )
    raise InputError(
        f"the {side} feature of item {start + row} has a length of {float(length[row]):.1e}; up to {LONGEST:.0e} can "
        "be compared: leave it out or extract it again"
    )
