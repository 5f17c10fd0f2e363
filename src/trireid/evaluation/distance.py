"""Euclidean distances between feature sets, block by block, so that no part of them need be held."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trireid.errors import InputError


@dataclass(frozen=True)
class Centred:
    """Features around a common centre, ready for `euclidean`.

    Attributes:
        value: `(n, D)` float64, features less the centre.
        norm: `(n,)` float64, their squared lengths.
    """

    value: Tensor
    norm: Tensor

    def __len__(self) -> int:
        return self.norm.shape[0]

    def __getitem__(self, rows: slice) -> Centred:
        return Centred(self.value[rows], self.norm[rows])


def centred(features: Tensor, centre: Tensor) -> Centred:
    """Features `(n, D)` around a centre `(D,)` float64."""
    value = features.double() - centre
    return Centred(value, value.square().sum(dim=1))


def centre_of(features: Tensor) -> Tensor:
    """The mean of features `(n, D)` as `(D,)` float64, 0 where there are none."""
    return features.double().mean(dim=0) if len(features) else features.new_zeros(features.shape[1]).double()


def euclidean(first: Centred, second: Centred) -> Tensor:
    """Distances of all pairs around the same centre, by one matrix product: `(Q, D)`, `(G, D)` -> `(Q, G)` float32."""
    norms = first.norm[:, None] + second.norm  # (Q, G)
    squared = torch.addmm(norms, first.value, second.value.T, alpha=-2.0)
    # Rounding leaves up to 1e-12 of the norms for equal features, and may leave it negative.
    return squared.masked_fill_(squared <= norms.mul_(1e-12), 0.0).sqrt_().float()


def check_widths(first: Tensor, second: Tensor, *, name: str) -> None:
    """Raise InputError unless both are `(n, D)` of one width."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(f"{name} got {tuple(first.shape)} and {tuple(second.shape)}; allowed are (Q, D) and (G, D)")
