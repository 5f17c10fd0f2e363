"""Distances between items that lack different modalities: a pair is compared by the blocks that both items have.

Each item is L2-normalised over these blocks alone, and the cosine is weighted by the number of shared blocks, so that
one ranking may hold items with any modalities. Items are grouped by their modalities: at most 7 x 7 pairs of groups,
one matrix product each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from trireid.errors import InputError
from trireid.evaluation.distance import centred, euclidean, unit
from trireid.evaluation.nearest import row_slices
from trireid.types import Blocks, filled_blocks

ROWS = 1024
"""Queries that are compared at a time."""


@dataclass(frozen=True)
class Presence:
    """Which modalities the items of a ranking have, and which modalities each block of their feature comes from.

    Attributes:
        blocks: the modalities of each of K blocks, see `types.Blocks`.
        query: `(Q, M)` bool.
        gallery: `(G, M)` bool; the same tensor where the queries are the gallery.
        unrelated: cosine of unrelated items, see `unrelated_cosine`.
    """

    blocks: Blocks
    query: Tensor
    gallery: Tensor
    unrelated: float = 0.0

    @property
    def is_uniform(self) -> bool:
        """True where all items have the same modalities: whole features are compared, as without presence."""
        first = self.query[:1]
        return bool((self.query == first).all()) and bool((self.gallery == first).all())

    def check(self, num_queries: int, num_gallery: int, width: int) -> None:
        """Raise InputError unless it fits features `(Q, D)` and `(G, D)`."""
        if (len(self.query), len(self.gallery)) != (num_queries, num_gallery):
            raise InputError(
                f"presence is of {len(self.query)} queries and {len(self.gallery)} gallery items, the features of "
                f"{num_queries} and {num_gallery}; there must be one row for each"
            )
        if width % len(self.blocks):
            raise InputError(f"a feature of width {width} cannot be {len(self.blocks)} blocks of equal width")


def unrelated_cosine(features: Tensor, present: Tensor, blocks: Blocks) -> float:
    """The cosine to expect of two unrelated items, in [0, 1].

    The mean product of a block of two different items, divided by its mean square, over all blocks: the part of the
    features that all items share. Items count equally, whatever their lengths, as in the distance: each is scaled to a
    mean square of 1 over its blocks. Nearly all pairs of a set are of different identities, so labels are not needed.

    Args:
        features: `(n, D)` of a set of items like those to be ranked.
        present: `(n, M)` bool.
        blocks: the modalities of each block of a feature.

    Example:
        >>> features = torch.eye(2, 6)  # orthogonal features have nothing in common
        >>> unrelated_cosine(features, torch.ones(2, 3, dtype=torch.bool), blocks=((0,), (1,), (2,)))
        0.0
    """
    filled = filled_blocks(blocks, present).double()  # (n, K)
    values = unit((features.double().unflatten(1, (len(blocks), -1)) * filled[..., None]).flatten(1)).double()
    values = (values * filled.sum(dim=1, keepdim=True).sqrt()).unflatten(1, (len(blocks), -1))
    count = filled.sum(dim=0)  # (K,)
    energy = values.square().sum(dim=(0, 2))
    product = values.sum(dim=0).square().sum(dim=1) - energy  # of all ordered pairs of different items
    several = count > 1
    whole = (energy / count)[several].sum()
    if not float(whole) > 0.0:
        return 0.0
    return float(((product / (count * (count - 1)))[several].sum() / whole).clamp(0.0, 1.0))


def presence_groups(present: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Group items by their modalities: `(n, M)` bool -> pattern `(M,)` bool and the rows `(g,)` int64 of each group.

    Example:
        >>> present = torch.tensor([[True, True, True], [True, False, False], [True, True, True]])
        >>> [(pattern.tolist(), rows.tolist()) for pattern, rows in presence_groups(present)]
        [([True, False, False], [1]), ([True, True, True], [0, 2])]
    """
    patterns, group = present.unique(dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        yield pattern, (group == number).nonzero()[:, 0]


def unshared_pairs(query: Tensor, gallery: Tensor, blocks: Blocks) -> float:
    """Share of the pairs of query and gallery that have no block in common, in [0, 1].

    Such pairs cannot be told apart: all have the distance of unrelated items (`shared_distance`).

    Args:
        query, gallery: `(Q, M)` and `(G, M)` bool, at least one row each.
        blocks: the modalities of each block of a feature.

    Example:
        >>> rgb, nir = [True, False, False], [False, True, False]
        >>> unshared_pairs(torch.tensor([rgb]), torch.tensor([rgb, nir]), blocks=((0,), (1,), (2,)))
        0.5
    """
    sides = [
        [(filled_blocks(blocks, own), len(rows)) for own, rows in presence_groups(present)]
        for present in (query, gallery)
    ]
    apart = sum(m * n for (one, m), (other, n) in product(*sides) if not bool((one & other).any()))
    return apart / (len(query) * len(gallery))


def shared_distance(
    first: Tensor,
    second: Tensor,
    first_present: Tensor,
    second_present: Tensor,
    blocks: Blocks,
    *,
    unrelated: float = 0.0,
) -> Tensor:
    """Distances of all pairs, each over the blocks that both items have.

    With `cos` the cosine over these blocks, `share` their share of all K and w = sqrt(share), the distance is
    `sqrt(2 - 2 (w cos + (1 - w) unrelated))`: the Euclidean distance of the normalised parts where all blocks are
    shared; the fewer are shared, the nearer it is to the distance of unrelated features. The square root follows from
    the spread of a mean: over s blocks it is 1 / sqrt(s), so a cosine over s blocks has weight sqrt(s). A pair that
    shares nothing has the distance of unrelated items.

    Args:
        first, second: `(Q, D)` and `(G, D)` features, un-normalised.
        first_present, second_present: `(Q, M)` and `(G, M)` bool.
        blocks: the modalities of each block of a feature.
        unrelated: see `unrelated_cosine`.

    Returns:
        `(Q, G)` float32 in [0, 2]; the distance of a pair does not depend on the other items.

    Example:
        Two items that share all three blocks, and two that share one:

        >>> features = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0, 0.0]])
        >>> blocks = ((0,), (1,), (2,))
        >>> everything, rgb_alone = torch.tensor([[True, True, True]]), torch.tensor([[True, False, False]])
        >>> shared_distance(features, features, everything, everything, blocks).item()
        0.0
        >>> round(shared_distance(features, features, everything, rgb_alone, blocks).item(), 3)
        0.919
    """
    result = torch.empty(len(first), len(second), dtype=torch.float32, device=first.device)
    groups = list(presence_groups(second_present))
    for own, rows in presence_groups(first_present):
        for other, columns in groups:
            shared = filled_blocks(blocks, own) & filled_blocks(blocks, other)  # (K,)
            weight = shared.double().mean().sqrt()
            gallery = _part(second[columns], shared)
            zero = gallery.new_zeros(
                gallery.shape[1], dtype=torch.float64
            )  # a mean as the centre would depend on the other items
            around = centred(gallery, zero)
            for some in row_slices(len(rows), ROWS):
                distance = euclidean(centred(_part(first[rows[some]], shared), zero), around)
                result[rows[some, None], columns] = _weighed(distance, weight, unrelated)
    return result


def shared_pair_distance(
    first: Tensor,
    second: Tensor,
    first_present: Tensor,
    second_present: Tensor,
    blocks: Blocks,
    *,
    unrelated: float = 0.0,
) -> Tensor:
    """As `shared_distance`, of single pairs: `(p, D)`, `(p, D)` and their presence `(p, M)` -> `(p,)` float32."""
    shared = filled_blocks(blocks, first_present) & filled_blocks(blocks, second_present)  # (p, K)
    one, other = (
        unit((each.double().unflatten(1, (len(blocks), -1)) * shared[..., None]).flatten(1)).double()
        for each in (first, second)
    )
    return _weighed(torch.linalg.vector_norm(one - other, dim=1), shared.double().mean(dim=1).sqrt(), unrelated)


def _weighed(distance: Tensor, weight: Tensor, unrelated: float) -> Tensor:
    """Distances of unit features, shrunk towards that of unrelated ones by a weight in [0, 1], float32."""
    return (weight * distance.double().square() + 2.0 * (1.0 - weight) * (1.0 - unrelated)).sqrt().float()


def _part(features: Tensor, shared: Tensor) -> Tensor:
    """The chosen blocks `(K,)` bool of features `(n, D)`, at unit length."""
    return unit(features.unflatten(1, (len(shared), -1))[:, shared].flatten(1))
