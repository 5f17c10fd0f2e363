"""The model's side of embedding: one feature of decoded batches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trireid.data.transforms import Normalise
from trireid.embedding.decoding import BadItem, DecodedItems
from trireid.errors import InputError
from trireid.evaluation.features import run_model
from trireid.models.reid import ReIDModel
from trireid.types import UNKNOWN, Batch


@dataclass
class EmbeddingCounts:
    """What happened while items were embedded.

    Attributes:
        bad: items that were left out.
        num_cut: boxes that reached beyond their image and were cut at its edge.
        strange: cameras that the model does not know.
        decoding: seconds of decoding, summed over the threads or processes that decode.
        waiting: seconds for which the model had nothing to do.
        seconds: in all.
    """

    bad: list[BadItem] = field(default_factory=list)
    num_cut: int = 0
    strange: set[str] = field(default_factory=set)
    decoding: float = 0.0
    waiting: float = 0.0
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
    vectors: Tensor
    present: Tensor
    num_read: int


class FeatureModel:
    """A model that gives one of its features."""

    def __init__(
        self,
        model: ReIDModel,
        *,
        feature: str,
        width: int,
        transform: Normalise,
        device: torch.device,
        dtype: torch.dtype | None,
        fast: bool | None,
    ) -> None:
        self.model, self.feature, self.width, self.transform = model, feature, width, transform
        self.device, self.dtype, self.fast = device, dtype, fast

    def run(
        self, batches: Iterable[DecodedItems], counts: EmbeddingCounts, *, total: int | None
    ) -> Iterator[EmbeddedBatch]:
        """The feature of each batch."""
        started = time.perf_counter()
        for batch in batches:
            vectors = self._feature(batch) if len(batch) else torch.zeros(0, self.width)
            _check_finite(vectors, batch)
            counts.seconds = time.perf_counter() - started
            yield EmbeddedBatch(batch.numbers, vectors, batch.present, len(batch) + len(batch.bad))

    def _feature(self, decoded: DecodedItems) -> Tensor:
        number = torch.arange(len(decoded))
        batch = Batch(
            images=decoded.pixels,
            present=decoded.present,
            label=torch.full_like(number, UNKNOWN),
            camera=decoded.camera,
            item=number,
            seed=number,
        )
        with torch.inference_mode():
            output = run_model(
                self.model, batch, present=batch.present, device=self.device, dtype=self.dtype, transform=self.transform
            )
            feature = output.embedding if self.feature == "joint" else output.features[self.feature]
            return feature.float().cpu()


def _check_finite(vectors: Tensor, batch: DecodedItems) -> None:
    broken = (~vectors.isfinite()).any(dim=1).nonzero()
    if len(broken):
        raise InputError(
            f"the feature of item {batch.numbers[int(broken[0])]} is NaN or infinite; check its images and the "
            "model's weights, or embed in fp32"
        )
