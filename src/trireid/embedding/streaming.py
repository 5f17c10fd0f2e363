"""What every embedder gives, batch by batch, and what is reported of it; the whole result is put together here.

No torch: the vectors of an embedder in torch are handed out as arrays.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trireid.embedding.embeddings import Embeddings
from trireid.embedding.interface import ItemEmbedder
from trireid.embedding.items import Item, as_items
from trireid.errors import InputError, printable
from trireid.names import MODALITIES
from trireid.train.progress import progress_bar

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadItem:
    """An item that was left out: its number in the call, its name, and why."""

    number: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def bad_item(number: int, item: Item, error: Exception) -> BadItem:
    """An item that cannot be read, by the name that people know it by."""
    return BadItem(number, name_of(number, item), printable(str(error), limit=600))


def refused(bad: BadItem) -> InputError:
    """The error for an item that cannot be read, where such items are not left out."""
    return InputError(
        f"{bad}; or leave the item out (skip_bad=True, --skip-bad of `trireid embed` and `trireid gallery add`)"
    )


def name_of(number: int, item: Item) -> str:
    """An item in a message: its key, or its number in the call."""
    return f"item {number}" if item.key is None else f"item '{printable(item.key, limit=80)}'"


@dataclass
class EmbeddingCounts:
    """What happened while items were embedded.

    Attributes:
        bad: items that were left out.
        num_cut: boxes that reached beyond their image and were cut at its edge.
        shallow: images by modality that have 8 bits, though the run has a range for deeper ones.
        strange: cameras that the model does not know.
        known: cameras that it was trained with, by their names.
        decoding: seconds of decoding, summed over the threads or processes that decode.
        model: seconds for which the model computed.
        seconds: in all.
    """

    bad: list[BadItem] = field(default_factory=list)
    num_cut: int = 0
    shallow: Counter[str] = field(default_factory=Counter)
    strange: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    decoding: float = 0.0
    model: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class EmbeddedBatch:
    """Features of items that follow each other.

    Attributes:
        numbers: of the items in the call; without those that were left out.
        vectors: `(n, D)` float32.
        present: `(n, M)` bool.
        num_read: items that were read for it, with those that were left out.
    """

    numbers: list[int]
    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]
    num_read: int


class StreamingEmbedder(ItemEmbedder, Protocol):
    """An embedder that also gives its batches one by one.

    Attributes:
        batch_size: items that go through the model together.
    """

    batch_size: int

    @property
    def precision(self) -> str:
        """In which the model computes."""

    @property
    def device(self) -> object:
        """Of the model; its text is shown."""

    def stream(
        self, items: Iterable[Item], *, counts: EmbeddingCounts, total: int | None = None, skip_bad: bool = False
    ) -> Iterator[EmbeddedBatch]:
        """Embed items batch by batch, while `counts` is filled."""


def embed_all(
    embedder: StreamingEmbedder, items: Iterable[Item | Mapping[str, Any]], *, progress: bool, skip_bad: bool
) -> Embeddings:
    """All batches of an embedder as one result; arguments and errors as `Embedder.embed`."""
    kept: list[Item] = []
    counts = EmbeddingCounts()

    def keep() -> Iterator[Item]:
        for item in as_items(items):
            kept.append(item.without_pixels(item.key if item.key is not None else str(len(kept))))
            yield item

    total = len(items) if isinstance(items, Sized) else None
    vectors = [np.zeros((0, embedder.model.width), np.float32)]
    present = [np.zeros((0, len(MODALITIES)), np.bool_)]
    numbers: list[int] = []
    with progress_bar("embedding", enabled=progress, total=total) as bar:
        for batch in embedder.stream(keep(), counts=counts, total=total, skip_bad=skip_bad):
            vectors.append(batch.vectors)
            present.append(batch.present)
            numbers += batch.numbers
            bar.advance(batch.num_read)
    report(counts)
    return Embeddings(
        np.concatenate(vectors), np.concatenate(present), tuple(kept[each] for each in numbers), embedder.model
    )


def report(counts: EmbeddingCounts, most: int = 20) -> None:
    """Log what a reader of the vectors must know."""
    for each in islice(counts.bad, most):
        _log.warning("left out: %s", each)
    if len(counts.bad) > most:
        _log.warning("left out: %d items in all", len(counts.bad))
    if counts.num_cut:
        _log.warning("%d boxes reach beyond their image and were cut at its edge", counts.num_cut)
    for name, number in counts.shallow.items():
        _log.warning(
            "%d %s images have 8 bits and are used as they are, though data.range.%s is for deeper ones: "
            "their contrast differs from the training images",
            number,
            name,
            name,
        )
    if counts.strange:
        _log.warning(
            "items are of cameras that the model was not trained with (%s): they get the mean of those it knows",
            _listed(counts.strange),
        )
    if counts.known:
        _log.info(
            "cameras are taken as those of the same name that the model was trained with (%s): if they are others, "
            "rename them",
            _listed(counts.known),
        )


def _listed(names: Iterable[str]) -> str:
    """The first five names."""
    ordered = sorted(names)
    shown = ", ".join(printable(name, limit=60) for name in ordered[:5])
    return shown + (" and more" if len(ordered) > 5 else "")
