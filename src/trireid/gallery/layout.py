"""How a feature lies in the one vector field of the engine, so that its inner products are exact cosines. No torch.

A pair is compared by the cosine over the blocks S that both items have, each item scaled to unit length *over S*
(`trireid.evaluation.presence`). One whole vector of unit length does not give it: where the query lacks a block, the
item's length over S is not its length over all blocks, and that ratio differs from item to item. Blocks of unit length
each would give another cosine, in which a weak block counts as much as a strong one. So a row holds the whole item at
unit length and, with `partial`, one part at unit length for every other S that a query can share with it, side by
side: at most 7 parts, 4 times the width for three blocks of one modality. A query is placed in the part of its S, with
zeros elsewhere. One row for each item keeps writes atomic. Without `partial`, queries that lack a block of an item are
compared by reading the items of that presence (`search.py`): slow for large galleries, but exact as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trireid.names import MODALITIES

if TYPE_CHECKING:
    from trireid.types import Blocks

CODES = tuple(range(1, 2 ** len(MODALITIES)))
"""All presences as numbers: bit m is set where modality m is present."""

Shared = tuple[int, ...]
"""Numbers of the blocks that a pair is compared by, ascending."""


def presence_codes(present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The numbers of presences: `(n, M)` bool -> `(n,)`.

    Example:
        >>> presence_codes(np.array([[True, False, True]])).tolist()
        [5]
    """
    powers = 2 ** np.arange(len(MODALITIES))
    codes: NDArray[np.int64] = (present.astype(np.int64) * powers).sum(axis=1)
    return codes


def present_of(code: int) -> tuple[bool, ...]:
    """Which modalities a number means: `(M,)`."""
    return tuple(bool(code >> index & 1) for index in range(len(MODALITIES)))


def names_of(code: int) -> tuple[str, ...]:
    """The modalities of a number, in order."""
    return tuple(name for name, there in zip(MODALITIES, present_of(code), strict=True) if there)


def same_modalities(blocks: Blocks) -> list[list[int]]:
    """The numbers of the blocks of each set of modalities that blocks are made of, in the order of their first one.

    Example:
        >>> same_modalities(((0,), (1,), (0,), (0, 1)))
        [[0, 2], [1], [3]]
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for number, block in enumerate(blocks):
        found.setdefault(tuple(block), []).append(number)
    return list(found.values())


def unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of unit length; a row of zeros stays one."""
    length = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return rows / np.where(length > 0.0, length, 1.0)


@dataclass(frozen=True)
class Layout:
    """Where each part of an item lies in its row.

    Attributes:
        blocks: the modalities of each of K blocks of a feature.
        width: of a feature, D.
        partial: also store what is needed to compare an item by some of its blocks alone.
    """

    blocks: Blocks
    width: int
    partial: bool = False
    _parts: dict[int, dict[Shared, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def block_width(self) -> int:
        """Numbers of one block."""
        return self.width // len(self.blocks)

    def filled(self, code: int) -> Shared:
        """The blocks of an item that at least one present modality contributes to."""
        return tuple(number for number, block in enumerate(self.blocks) if any(code >> each & 1 for each in block))

    def shared(self, query: int, item: int) -> Shared:
        """The blocks that a pair of presences shares."""
        return tuple(sorted(set(self.filled(query)) & set(self.filled(item))))

    def compared(self, query: int, item: int) -> tuple[str, ...]:
        """The modalities of the query that take part in the comparison: those of the shared blocks."""
        inside = {each for number in self.shared(query, item) for each in self.blocks[number]}
        return tuple(name for index, name in enumerate(MODALITIES) if index in inside and (query | item) >> index & 1)

    def weight(self, query: int, item: int) -> float:
        """How much the cosine of a pair counts: the root of the share of its shared blocks."""
        return float(np.sqrt(len(self.shared(query, item)) / len(self.blocks)))

    def parts(self, code: int) -> dict[Shared, int]:
        """The parts of an item: shared blocks -> first column; the whole item comes first, at 0."""
        if code not in self._parts:
            whole = self.filled(code)
            others = sorted({self.shared(query, code) for query in CODES} - {whole, ()}) if self.partial else []
            places, start = {}, 0
            for part in (whole, *others):
                places[part] = start
                start += len(part) * self.block_width
            self._parts[code] = places
        return self._parts[code]

    @cached_property
    def row_width(self) -> int:
        """Numbers of a stored row."""
        ends = [start + len(part) * self.block_width for code in CODES for part, start in self.parts(code).items()]
        return max(ends)

    def columns(self, shared: Shared, code: int) -> slice:
        """Where the part of some shared blocks lies in the row of an item."""
        start = self.parts(code)[shared]
        return slice(start, start + len(shared) * self.block_width)

    def part(self, features: NDArray[np.float64], shared: Shared) -> NDArray[np.float64]:
        """Some blocks of features `(n, D)` at unit length."""
        blocks = features.reshape(len(features), len(self.blocks), self.block_width)[:, list(shared)]
        return unit_rows(blocks.reshape(len(features), -1))

    def rows(self, features: NDArray[np.float64], code: int) -> NDArray[np.float32]:
        """What is stored of features `(n, D)` of one presence: `(n, row_width)`."""
        rows = np.zeros((len(features), self.row_width), dtype=np.float32)
        for shared in self.parts(code):
            rows[:, self.columns(shared, code)] = self.part(features, shared)
        return rows

    def rows_by_code(self, features: NDArray[np.float32], codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """What is stored of features `(n, D)` of items with these presences: `(n, row_width)`."""
        stored = np.zeros((len(codes), self.row_width), dtype=np.float32)
        for code in np.unique(codes):
            stored[codes == code] = self.rows(features[codes == code].astype(np.float64), int(code))
        return stored

    def probes(self, features: NDArray[np.float64], query: int, item: int) -> NDArray[np.float32]:
        """Queries `(q, D)` of one presence as rows `(q, row_width)` whose inner products are cosines."""
        shared = self.shared(query, item)
        probes = np.zeros((len(features), self.row_width), dtype=np.float32)
        probes[:, self.columns(shared, item)] = self.part(features, shared)
        return probes

    def features(self, rows: NDArray[np.float32], code: int) -> NDArray[np.float64]:
        """Features `(n, D)` again, at unit length, of rows of one presence."""
        whole = self.filled(code)
        features = np.zeros((len(rows), len(self.blocks), self.block_width))
        parts = rows[:, self.columns(whole, code)].astype(np.float64)
        features[:, list(whole)] = parts.reshape(len(rows), len(whole), self.block_width)
        return features.reshape(len(rows), self.width)

    def squares(
        self, feature: NDArray[np.float64], query: int, rows: NDArray[np.float32], item: int
    ) -> NDArray[np.float64]:
        """Squared distances over the shared blocks, without weight: one query `(D,)` and rows of one presence.

        Sums run along each row by itself, so that equal rows give equal numbers: the order of ties is then that of
        the keys.
        """
        shared = self.shared(query, item)
        own = self.part(feature[None], shared)
        if shared in self.parts(item):
            others = unit_rows(rows[:, self.columns(shared, item)].astype(np.float64))
        else:
            others = self.part(self.features(rows, item), shared)
        difference = others - own
        squares: NDArray[np.float64] = (difference * difference).sum(axis=1)
        return squares


def weighed(square: float, weight: float, unrelated: float) -> float:
    """The squared distance of a pair: that over its shared blocks, shrunk towards that of unrelated items."""
    return weight * square + 2.0 * (1.0 - weight) * (1.0 - unrelated)


def unrelated_cosine(features: NDArray[np.float64], codes: NDArray[np.int64], layout: Layout) -> float:
    """As `trireid.evaluation.presence.unrelated_cosine`, of features `(n, D)` and presences `(n,)`.

    Example:
        >>> unrelated_cosine(np.eye(2, 6), np.array([7, 7]), Layout(((0,), (1,), (2,)), 6))
        0.0
    """
    filled = np.array([[number in layout.filled(int(code)) for number in range(len(layout.blocks))] for code in codes])
    values = features.reshape(len(features), len(layout.blocks), -1) * filled[..., None]
    values = unit_rows(values.reshape(len(features), -1)) * np.sqrt(filled.sum(axis=1, keepdims=True))
    blocks = values.reshape(len(features), len(layout.blocks), -1)
    count = filled.sum(axis=0)
    energy = (blocks**2).sum(axis=(0, 2))
    product = (blocks.sum(axis=0) ** 2).sum(axis=1) - energy  # of all ordered pairs of different items
    several = count > 1
    whole = float((energy[several] / count[several]).sum())
    if not whole > 0.0:
        return 0.0
    pairs = count[several] * (count[several] - 1)
    return float(np.clip((product[several] / pairs).sum() / whole, 0.0, 1.0))
