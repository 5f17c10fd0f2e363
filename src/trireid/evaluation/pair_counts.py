"""Counts of pairs of items by cosine: which pairs count, and how many of each two identities are accepted. No torch.

Cosines are counted in steps of `STEP`, so that memory does not grow with the number of pairs. A threshold lies half a
step below a multiple of it: cosines that are equal but for rounding, such as 0 and 1, are on one side of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

STEP = 2.0**-20
LARGEST = 2**20
"""The number of steps up to a cosine of 1."""
NOTHING = -(2**30)
"""In place of the step of a cosine that is not there."""
BUFFERED_PAIRS = 4_000_000

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Steps = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """Items with one set of modalities, sorted by group.

    Attributes:
        vectors: `(n, D)` float32, of unit length over the blocks that are compared.
        identity, item: `(n,)` numbers; rows of one item are never a pair.
        hidden: `(n,)` camera or scene; -1 where not known or where it does not matter.
        group: `(n,)` group of the identity, ascending; the groups are what the bootstrap samples.
    """

    vectors: NDArray[np.float32]
    identity: Integers
    item: Integers
    hidden: Integers
    group: Integers

    def __len__(self) -> int:
        return len(self.identity)


@dataclass(frozen=True)
class Block:
    """Pairs of the items of one group with all items of the other part.

    Attributes:
        group: of the rows.
        rows: of the first part.
        steps: `(a, b)` int32 cosines in steps.
        same, different: `(a, b)` bool: pairs of one identity, and of different ones; what is excluded is in neither.
    """

    group: int
    rows: slice
    steps: Steps
    same: Mask
    different: Mask


def blocks_of_pairs(first: Part, second: Part, *, exclude: str) -> Iterator[Block]:
    """All pairs, group by group.

    Args:
        first, second: what is compared; the same object twice where both items have the same modalities.
        exclude: `camera` and `scene` hide pairs of one identity with equal `hidden`; `cross_camera` hides all pairs
            with equal `hidden`; `none` hides none.
    """
    edges = np.flatnonzero(np.diff(first.group, prepend=-1, append=-1))
    for start, stop in pairwise(edges):
        rows = slice(int(start), int(stop))
        cosine = first.vectors[rows] @ second.vectors.T  # (a, b)
        same = first.identity[rows, None] == second.identity
        out = first.item[rows, None] == second.item
        alike = (first.hidden[rows, None] == second.hidden) & (second.hidden >= 0)
        out |= alike if exclude == "cross_camera" else alike & same
        steps = np.rint(np.clip(cosine, -1.0, 1.0) * LARGEST).astype(np.int32)
        yield Block(int(first.group[start]), rows, steps, same & ~out, ~same & ~out)


@dataclass(frozen=True)
class Histogram:
    """What one pass over all pairs finds.

    Attributes:
        different: `(2 * LARGEST + 1,)` pairs of different identities by step, from a cosine of -1 up.
        num_same, num_different: pairs.
        num_identity_pairs: pairs of different identities with a pair of items.
        num_identities: identities among these.
    """

    different: Integers
    num_same: int
    num_different: int
    num_identity_pairs: int
    num_identities: int


def count_pairs(first: Part, second: Part, *, exclude: str) -> Histogram:
    """Count each pair of items once; arguments as `blocks_of_pairs`."""
    histogram = np.zeros(2 * LARGEST + 1, dtype=np.int64)
    met: set[tuple[int, int]] = set()
    num_same, waiting, num_waiting = 0, [], 0
    for block in blocks_of_pairs(first, second, exclude=exclude):
        once = _once(first, second, block.rows)
        num_same += int((block.same & once).sum())
        different = block.different & once
        waiting.append(block.steps[different] + LARGEST)
        num_waiting += len(waiting[-1])
        for identity in np.unique(first.identity[block.rows]):
            others = second.identity[different[first.identity[block.rows] == identity].any(axis=0)]
            met |= {(min(identity, other), max(identity, other)) for other in np.unique(others)}
        if num_waiting > BUFFERED_PAIRS:
            histogram += np.bincount(np.concatenate(waiting), minlength=len(histogram))
            waiting, num_waiting = [], 0
    if waiting:
        histogram += np.bincount(np.concatenate(waiting), minlength=len(histogram))
    return Histogram(histogram, num_same, int(histogram.sum()), len(met), len({each for pair in met for each in pair}))


def _once(first: Part, second: Part, rows: slice) -> Mask | bool:
    """Which pairs of some rows are not counted from their other item: the upper triangle where both parts are one."""
    if first is not second:
        return True
    places = np.arange(len(first))
    return np.asarray(places[rows, None] < places)


def smallest_thresholds(histogram: Integers, rates: Floats) -> Steps:
    """The smallest threshold at which at most this share of the pairs is accepted, for each rate: ascending, no twice.

    A threshold k stands for a cosine of (k - 1/2) * `STEP`: pairs of k steps and more are accepted.
    """
    refused = np.cumsum(histogram)  # refused[b]: pairs up to bin b, which a threshold of b + 1 refuses
    total = int(refused[-1])
    # A share of pairs times their number may fall just below a whole number by rounding.
    accepted = np.floor(rates * total * (1.0 + 1e-12)).astype(np.int64)
    place = np.searchsorted(refused, total - accepted, side="left") + 1  # bins below it are refused
    place[accepted >= total] = 0
    return np.unique(place - LARGEST).astype(np.int32)


def threshold_cosine(steps: Steps) -> Floats:
    """The cosines of thresholds in steps."""
    return np.asarray((steps.astype(np.float64) - 0.5) * STEP)


@dataclass(frozen=True)
class GroupCounts:
    """Counts of accepted pairs and refused queries by group, at T thresholds for S groups.

    Attributes:
        accepted: `(T, S, S)` float32 accepted pairs of different identities.
        different: `(S, S)` float32 all of them.
        refused: `(T, S)` refused pairs of one identity.
        same: `(S,)` all of them.
        queries: for each side as the query, see `QueryCounts`.
    """

    accepted: NDArray[np.float32]
    different: NDArray[np.float32]
    refused: Floats
    same: Floats
    queries: tuple[QueryCounts, ...]


@dataclass(frozen=True)
class QueryCounts:
    """Open-set searches by the group of the query.

    Attributes:
        false_positive: `(T, S)` queries that find an accepted item among those of other identities.
        unmated: `(S,)` queries with an item of another identity.
        false_negative: `(T, S)` queries with a mate whose first item is not an accepted mate; ties are failures.
        mated: `(S,)` queries with a mate.
    """

    false_positive: Floats
    unmated: Floats
    false_negative: Floats
    mated: Floats


def count_by_group(first: Part, second: Part, *, thresholds: Steps, num_groups: int, exclude: str) -> GroupCounts:
    """Count at all thresholds; further arguments as `blocks_of_pairs`.

    Args:
        thresholds: `(T,)` in steps, ascending.
        num_groups: S.
    """
    num, cells = len(thresholds), (len(thresholds) + 1) * num_groups
    reached = np.zeros((num + 1, num_groups, num_groups), dtype=np.float32)  # by the number of thresholds reached
    same = np.zeros((num + 1, num_groups))
    best = [_Best.of(len(part)) for part in (first, second)]
    for block in blocks_of_pairs(first, second, exclude=exclude):
        once = _once(first, second, block.rows)
        place = np.searchsorted(thresholds, block.steps, side="right") * num_groups + second.group  # (a, b)
        row = np.bincount(place[block.different & once], minlength=cells)
        reached[:, block.group] += row.reshape(-1, num_groups)
        same += np.bincount(place[block.same & once], minlength=cells).reshape(-1, num_groups)
        best[0].raise_to(block.rows, block.steps, block, axis=1)
        best[1].raise_to(slice(None), block.steps, block, axis=0)
    sides = [(first, best[0])] + ([] if first is second else [(second, best[1])])
    return GroupCounts(
        accepted=reached[::-1].cumsum(axis=0)[:-1][::-1],
        different=reached.sum(axis=0),
        refused=same.cumsum(axis=0)[:-1],
        same=same.sum(axis=0),
        queries=tuple(each.counts(part, thresholds, num_groups) for part, each in sides),
    )


@dataclass(frozen=True)
class _Best:
    """The nearest item of its own identity and of another one of each query, in steps."""

    mate: Steps
    other: Steps

    @classmethod
    def of(cls, count: int) -> _Best:
        return cls(np.full(count, NOTHING, dtype=np.int32), np.full(count, NOTHING, dtype=np.int32))

    def raise_to(self, rows: slice, steps: Steps, block: Block, *, axis: int) -> None:
        for known, mask in ((self.mate, block.same), (self.other, block.different)):
            found = np.where(mask, steps, NOTHING).max(axis=axis, initial=NOTHING)
            np.maximum(known[rows], found, out=known[rows])

    def counts(self, part: Part, thresholds: Steps, num_groups: int) -> QueryCounts:
        has_other, has_mate = self.other > NOTHING, self.mate > NOTHING
        found = np.where(self.mate > self.other, self.mate, NOTHING)  # a mate that is not first is never found
        reached = [self.other >= each for each in thresholds]
        missed = [has_mate & (found < each) for each in thresholds]

        def by_group(rows: list[Mask]) -> Floats:
            return np.array([np.bincount(part.group[row], minlength=num_groups) for row in rows], dtype=np.float64)

        return QueryCounts(by_group(reached), by_group([has_other])[0], by_group(missed), by_group([has_mate])[0])
