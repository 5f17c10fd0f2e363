"""The model's side of embedding: one feature of decoded batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trireid.data.transforms import Normalise
from trireid.embedding.decoding import DecodedItems
from trireid.embedding.fast import FastModel, plain_blocks
from trireid.embedding.streaming import EmbeddedBatch, EmbeddingCounts
from trireid.errors import InputError
from trireid.evaluation.features import run_model
from trireid.evaluation.float8 import into_float8
from trireid.models.reid import ReIDModel
from trireid.types import UNKNOWN, Batch


class FeatureModel:
    """A model that gives one of its features, the faster the more items there are.

    Args:
        model: in evaluation mode, on `device`.
        feature, width: which feature, and its width.
        transform: makes images of pixels.
        device, dtype: where the model runs, and the autocast type.
        fast: as of `Embedder`.
        float8: put the large products into e4m3, calibrated by the first batch.
    """

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
        float8: bool = False,
    ) -> None:
        self.model, self.feature, self.width, self.transform = model, feature, width, transform
        self.device, self.dtype = device, dtype
        self._is_float8_due = float8
        self._fast = FastModel(model, transform, dtype=dtype, fast=fast) if device.type == "cuda" else None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(
        self, batches: Iterable[DecodedItems], counts: EmbeddingCounts, *, total: int | None, batch_size: int
    ) -> Iterator[EmbeddedBatch]:
        """The feature of each batch; on a CUDA device the next batch starts before the last one is fetched."""
        started, seen = time.perf_counter(), 0
        pending: deque[tuple[DecodedItems, Computed]] = deque()
        for batch in batches:
            seen += batch.num_read
            self.calibrate(batch)
            if self._fast is not None:
                self._fast.prepare(max(total or 0, seen), batch_size=batch_size)
            pending.append((batch, self._compute(batch)))
            if len(pending) > (self.device.type == "cuda"):
                yield _finished(*pending.popleft(), counts, started)
        while pending:
            yield _finished(*pending.popleft(), counts, started)

    def calibrate(self, batch: DecodedItems) -> None:
        """Put the products into e4m3 by the first batch with items, before anything is compiled; later ones do nothing.

        Raises:
            InputError: see `into_float8`.
        """
        if self._is_float8_due and len(batch):
            into_float8(self.model, _batch(batch, batch.pixels), device=self.device, transform=self.transform)
            self._is_float8_due = False

    def _compute(self, decoded: DecodedItems) -> Computed:
        if not len(decoded):
            return Computed(torch.zeros(0, self.width))
        if self._copies is None:
            started = time.perf_counter()
            return Computed(self._feature(decoded, decoded.pixels).cpu(), seconds=time.perf_counter() - started)
        here = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            pixels = decoded.pixels.to(self.device, non_blocking=True)
        here.wait_stream(self._copies)
        pixels.record_stream(here)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(here)
        feature = self._feature(decoded, pixels)
        end.record(here)
        fetched = torch.empty(feature.shape, dtype=feature.dtype, pin_memory=True)
        fetched.copy_(feature, non_blocking=True)
        done = torch.cuda.Event()
        done.record(here)
        return Computed(fetched, events=(start, end, done))

    def _feature(self, decoded: DecodedItems, pixels: Tensor) -> Tensor:
        """`(n, D)` float32 on the device."""
        batch = _batch(decoded, pixels)
        with torch.inference_mode():
            output = None if self._fast is None else self._fast(batch)
            if output is None:
                with plain_blocks(self.model):
                    output = run_model(
                        self.model,
                        batch,
                        present=batch.present,
                        device=self.device,
                        dtype=self.dtype,
                        transform=self.transform,
                    )
            feature = output.embedding if self.feature == "joint" else output.features[self.feature]
            return feature.float()


@dataclass(frozen=True)
class Computed:
    """A feature `(n, D)` on the CPU, complete after the last of its events, and the seconds that it took."""

    vectors: Tensor
    seconds: float = 0.0
    events: tuple[torch.cuda.Event, torch.cuda.Event, torch.cuda.Event] | None = None

    def wait(self) -> float:
        """Wait until it is complete; the seconds of the model."""
        if self.events is None:
            return self.seconds
        start, end, done = self.events
        done.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1000


def _batch(decoded: DecodedItems, pixels: Tensor) -> Batch:
    number = torch.arange(len(decoded))
    unknown = torch.full_like(number, UNKNOWN)
    return Batch(pixels, decoded.present, label=unknown, camera=decoded.camera, item=number, seed=number)


def _finished(batch: DecodedItems, computed: Computed, counts: EmbeddingCounts, started: float) -> EmbeddedBatch:
    counts.model += computed.wait()
    counts.seconds = time.perf_counter() - started
    _check_finite(computed.vectors, batch)
    return EmbeddedBatch(batch.numbers, computed.vectors.numpy(), batch.present.numpy(), batch.num_read)


def _check_finite(vectors: Tensor, batch: DecodedItems) -> None:
    broken = (~vectors.isfinite()).any(dim=1).nonzero()
    if len(broken):
        raise InputError(
            f"the feature of item {batch.numbers[int(broken[0])]} is NaN or infinite; check its images and the "
            "model's weights, or embed in fp32"
        )
