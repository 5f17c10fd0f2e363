"""Embeddings: the features of a set of items, and where they come from. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trireid.embedding.items import Item

if TYPE_CHECKING:
    from trireid.types import Blocks


@dataclass(frozen=True)
class ModelIdentity:
    """What vectors were made by. Vectors can be compared only where `fingerprint` and `feature` are equal.

    Attributes:
        fingerprint: SHA-256, as 64 hexadecimal digits, of the weights and of the settings that change a feature.
        feature: which feature of the model it is: `global`, `head` or `joint`.
        blocks: the modalities of each of its blocks, see `trireid.types.Blocks`.
        width: of a vector.
        description: a line for people: the checkpoint, its backbone and head.
        version: of trireid, which made the vectors.
    """

    fingerprint: str
    feature: str
    blocks: Blocks
    width: int
    description: str = ""
    version: str = ""


@dataclass(frozen=True)
class Embeddings:
    """Features of n items, row for row.

    Attributes:
        vectors: `(n, D)` float32, not normalised; 0 in the blocks of absent modalities.
        present: `(n, M)` bool, which modalities each item was embedded from.
        items: n items, with a key each, and with the paths of their images where they were files.
        model: what made the vectors.
    """

    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]
    items: tuple[Item, ...]
    model: ModelIdentity

    def __len__(self) -> int:
        return len(self.items)
