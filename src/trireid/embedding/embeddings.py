"""Embeddings: the features of a set of items, and where they come from. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trireid.embedding.items import Item
from trireid.errors import InputError, printable
from trireid.names import MODALITIES, Centring

if TYPE_CHECKING:
    from trireid.types import Blocks

ROWS = 4096
"""Rows that are looked at together, so that vectors of a file need not be in memory at once."""


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
        centring: what was subtracted from the features: `none`, `train` or `camera`.

    Example:
        >>> model = ModelIdentity("0" * 64, "global", blocks=((0,), (1,), (2,)), width=6)
        >>> model.makes_the_same_vectors_as(model)
        True
    """

    fingerprint: str
    feature: str
    blocks: Blocks
    width: int
    description: str = ""
    version: str = ""
    centring: Centring = "none"

    def __post_init__(self) -> None:
        if not self.blocks or self.width < 1 or self.width % len(self.blocks):
            raise InputError(f"a vector of width {self.width} cannot be {len(self.blocks)} blocks of equal width")

    def makes_the_same_vectors_as(self, other: ModelIdentity) -> bool:
        """Whether vectors of both can be compared: the same weights, settings and feature."""
        return (self.fingerprint, self.feature) == (other.fingerprint, other.feature)

    def __str__(self) -> str:
        name = printable(self.description, limit=120) or "a model"
        return f"{name}, feature {printable(self.feature, limit=20)}, fingerprint {self.fingerprint[:12]}"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of n items, row for row.

    Attributes:
        vectors: `(n, D)` float32, not normalised; 0 in the blocks of absent modalities. Of a file that was loaded they
            stay on the disk and are read where they are used.
        present: `(n, M)` bool, which modalities each item was embedded from.
        items: n items, with a key each, and with the paths of their images where they were files.
        model: what made the vectors.

    Raises:
        InputError: shapes or types do not fit, a value is not finite, an item has no modality or no key, or two items
            have the same key.

    Example:
        >>> model = ModelIdentity("0" * 64, "global", blocks=((0,), (1,), (2,)), width=3)
        >>> items = (Item({}, key="a"), Item({}, key="b"))
        >>> both = Embeddings(np.ones((2, 3), np.float32), np.ones((2, 3), bool), items, model)
        >>> both.select([1]).items[0].key
        'b'
    """

    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]
    items: tuple[Item, ...]
    model: ModelIdentity

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        _check_array("vectors", self.vectors, np.dtype(np.float32), (len(self.items), self.model.width))
        _check_array("present", self.present, np.dtype(np.bool_), (len(self.items), len(MODALITIES)))
        self._check_keys()
        bare = np.flatnonzero(~self.present.any(axis=1))
        if bare.size:
            raise InputError(f"{self.items[bare[0]].name} has no modality: every item needs at least one")
        for start in range(0, len(self), ROWS):
            wrong = np.flatnonzero(~np.isfinite(self.vectors[start : start + ROWS]).all(axis=1))
            if wrong.size:
                item = self.items[start + int(wrong[0])]
                raise InputError(f"the vector of {item.name} holds NaN or infinity: embed the item again")

    def _check_keys(self) -> None:
        keys: set[str] = set()
        for row, item in enumerate(self.items):
            if item.key is None:
                raise InputError(f"the item of row {row} has no key: items of embeddings need one each")
            if item.key in keys:
                raise InputError(f"{item.name} is there twice: every key may occur once")
            keys.add(item.key)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the items, row for row."""
        return tuple(item.key for item in self.items if item.key is not None)

    def select(self, rows: Sequence[int] | NDArray[Any]) -> Embeddings:
        """Some of the items, in the given order.

        Args:
            rows: numbers of rows, or one truth value for each row.

        Raises:
            InputError: a row does not exist or is named twice.
        """
        index = np.asarray(rows)
        if index.dtype == np.bool_ and index.shape == (len(self),):
            index = np.flatnonzero(index)
        index = index.astype(np.int64) if index.size == 0 else index
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise InputError(f"rows are {index.dtype} {index.shape}: give row numbers, or a truth value for each row")
        outside = index[(index < 0) | (index >= len(self))]
        if outside.size:
            raise InputError(f"row {int(outside[0])} does not exist: the rows are 0 to {len(self) - 1}")
        items = tuple(self.items[row] for row in index.tolist())
        return Embeddings(np.asarray(self.vectors[index]), self.present[index], items, self.model)

    def centred_by_camera(self) -> Embeddings:
        """The same items with the mean vector of their camera subtracted, block by block over the items that have it.

        The mean is of this set, so the vectors can be compared within it alone: their `model` has a fingerprint of its
        own. Items of unknown camera are one group.

        Example:
            >>> model = ModelIdentity("0" * 64, "global", blocks=((0,), (1,), (2,)), width=3)
            >>> items = tuple(Item({}, key=key, camera="1") for key in ("a", "b"))
            >>> vectors = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
            >>> Embeddings(vectors, np.ones((2, 3), bool), items, model).centred_by_camera().vectors.tolist()
            [[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]]
        """
        from trireid.embedding.centred import centred_by_camera

        return centred_by_camera(self)

    def save(self, path: Path | str) -> None:
        """Write `FILE.safetensors` (vectors, presence, model) and `FILE.csv` (the items), both whole or not at all.

        Older embeddings of this name are replaced, with a warning; other files are not.

        Args:
            path: `FILE`, with or without one of these endings.

        Raises:
            RunError: another kind of file has one of the names, the folder cannot be written or the disk is full.
        """
        from trireid.embedding.embedding_files import save_embeddings

        save_embeddings(Path(path), self)

    @classmethod
    def load(cls, path: Path | str) -> Embeddings:
        """Read what `save` or `trireid embed` wrote; the vectors stay on the disk until they are used.

        Args:
            path: `FILE`, with or without one of the endings `.safetensors` and `.csv`.

        Raises:
            DataError: a file is missing or damaged, or table and vectors do not belong together.
        """
        from trireid.embedding.embedding_files import load_embeddings

        return load_embeddings(Path(path))


def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
    """Embeddings of one model put together, in the given order.

    Raises:
        InputError: there are none, they are of different models or features, or two items have the same key.

    Example:
        >>> model = ModelIdentity("0" * 64, "global", blocks=((0,), (1,), (2,)), width=3)
        >>> one, other = (
        ...     Embeddings(np.ones((1, 3), np.float32), np.ones((1, 3), bool), (Item({}, key=key),), model)
        ...     for key in ("a", "b")
        ... )
        >>> len(concatenate([one, other]))
        2
    """
    if not parts:
        raise InputError("there are no embeddings to put together: give at least one")
    model = parts[0].model
    for part in parts[1:]:
        check_same_model(part.model, model)
    owners: dict[str, int] = {}
    for number, part in enumerate(parts):
        twice = next((key for key in part.keys if key in owners), None)
        if twice is not None:
            raise InputError(
                f"parts {owners[twice]} and {number} both have the item '{printable(twice, limit=80)}': keys "
                "must differ; `trireid embed --prefix-keys` puts the name of each folder before them"
            )
        owners |= dict.fromkeys(part.keys, number)
    return Embeddings(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.present for part in parts]),
        tuple(item for part in parts for item in part.items),
        model,
    )


def check_same_model(given: ModelIdentity, expected: ModelIdentity) -> None:
    """Refuse vectors of another model or feature.

    Raises:
        InputError: they cannot be compared.
    """
    if not given.makes_the_same_vectors_as(expected):
        raise InputError(
            f"the vectors are of another model or feature ({given}) than expected ({expected}): embed the images with "
            "the same checkpoint and feature"
        )


def _check_array(name: str, array: Any, dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        given = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{name} are {given}: they must be a numpy array of {dtype} {shape}")
