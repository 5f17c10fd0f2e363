"""Images in, features out: what `trireid test` computes of a data set, of any items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trireid.data.range_settings import known_ranges
from trireid.data.transforms import Normalise
from trireid.embedding.ahead import decoded_batches
from trireid.embedding.decoding import DecodedItems, ItemDecoder
from trireid.embedding.embeddings import Embeddings
from trireid.embedding.forward import FeatureModel
from trireid.embedding.identity import model_identity
from trireid.embedding.items import Item
from trireid.embedding.own_centring import with_own_centring
from trireid.embedding.own_ranges import OwnRanges, with_own_ranges
from trireid.embedding.streaming import EmbeddedBatch, EmbeddingCounts, embed_all, refused
from trireid.errors import InputError
from trireid.models.reid import ReIDModel
from trireid.train.checkpoint import Checkpoint, build_for, config_here, load_checkpoint, usable_device
from trireid.train.device import autocast_dtype, resolve_inference_precision


@dataclass(frozen=True)
class ModelInputs:
    """Items as a model takes them, on the CPU.

    Attributes:
        model: in evaluation mode, on the embedder's device.
        pixels: uint8 `(B, M, 3, H, W)`.
        images: the same, normalised.
        present: `(B, M)` bool.
        camera: `(B,)` int64.
    """

    model: ReIDModel
    pixels: Tensor
    images: Tensor
    present: Tensor
    camera: Tensor


class Embedder:
    """Embeds items by a trained model, with the features of `trireid test`.

    On a CUDA device the model is compiled and recorded where the number of items is worth it; the log says so.

    Args:
        run_or_checkpoint: a run folder (its last checkpoint), a checkpoint file, or what `load_checkpoint` returned.
        device: `auto` (CUDA where there is one), or a device of torch.
        feature: `global`, `head` or `joint`.
        batch_size: items that go through the model together; None: `evaluate.batch_size` of the run.
        precision: `fp32`, `bf16`, `fp16` or `fp8`; None: that of the run, as `trireid test`. With `fp8` the large
            products are in 8-bit floating point, calibrated by the first batch of the first call; the model is then
            compiled and recorded, unless `fast` is False.
        workers: threads or processes that decode; None: as many as there are cores.
        fast: True compiles and records always (complete items on a CUDA device), False never; None: where it pays.
        centring: `train` subtracts the mean of the training features, `none` nothing; None: as `evaluate.centring` of
            the run. Centred features are those of another model.
        ranges: for images of more than 8 bits, by modality: (value of black, value of white), or `file` for the
            percentiles of each file; None: those of the run. Other ranges than those of the run make another model.

    Attributes:
        model: what the vectors are made by.
        modalities: that the model reads; images of others are not opened.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or lacks the mean that is to be subtracted.
        ConfigError: the device cannot compute in this precision.
        InputError: the device does not exist or has no fp8, the model has no such feature, or a range or centring is
            none.
    """

    def __init__(
        self,
        run_or_checkpoint: Checkpoint | Path | str,
        *,
        device: torch.device | str = "auto",
        feature: str = "joint",
        batch_size: int | None = None,
        precision: str | None = None,
        workers: int | None = None,
        fast: bool | None = None,
        ranges: OwnRanges | None = None,
        centring: str | None = None,
    ) -> None:
        given = run_or_checkpoint
        checkpoint = with_own_ranges(given if isinstance(given, Checkpoint) else load_checkpoint(given), ranges)
        checkpoint = with_own_centring(checkpoint, centring)
        config = config_here(checkpoint)
        for name, number in (("batch_size", batch_size), ("workers", workers)):
            if number is not None and number < 1:
                raise InputError(f"{name} is {number}: give at least 1, or None")
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = usable_device(auto if device == "auto" else device)
        self.precision = resolve_inference_precision(precision or config.train.precision, self.device)
        self.batch_size = config.evaluate.batch_size if batch_size is None else batch_size
        self.workers = workers
        model = build_for(checkpoint, config).to(self.device).eval()
        self.model = model_identity(checkpoint, model, feature=feature)
        self.modalities: tuple[str, ...] = config.data.modalities
        self._decoder = ItemDecoder(
            config.data.image_size,
            config.data.interpolation,
            known_ranges(config.data.range),
            self.modalities,
            checkpoint.label_map,
        )
        self._uses_cameras = model.backbone.camera_embedding is not None
        self._features = FeatureModel(
            model,
            feature=feature,
            width=self.model.width,
            transform=Normalise(config.data.mean, config.data.std),
            device=self.device,
            dtype=autocast_dtype(self.precision),
            fast=True if fast is None and self.precision == "fp8" else fast,
            float8=self.precision == "fp8",
        )

    def embed(
        self, items: Iterable[Item | Mapping[str, Any]], *, progress: bool = False, skip_bad: bool = False
    ) -> Embeddings:
        """Embed items, in their order; they are read while the model computes, and never all at once.

        Args:
            items: a mapping `{"rgb": path_or_array, ...}` is an item about which nothing else is known.
            progress: show a bar.
            skip_bad: leave out items that cannot be read, with a warning that names them; False: an error.

        Raises:
            ImageError: an image cannot be read.
            InputError: an item has no image that the model reads, a box lies outside of its image, a feature is not
                finite, or two items have the same key.
        """
        return embed_all(self, items, progress=progress, skip_bad=skip_bad)

    def calibrate(self, items: Sequence[Item]) -> None:
        """Choose the scales of precision `fp8` by these items, not by the first batch; nothing in other precisions.

        Items that cannot be read are left out. What was calibrated once stays.
        """
        if self.precision == "fp8":
            self._features.calibrate(self._decoder.decode_all(list(enumerate(items))))

    def inputs(self, items: Sequence[Item]) -> ModelInputs:
        """Items as the model takes them, and the model itself: to look into what it does.

        Raises:
            ImageError, InputError: as `embed`.
        """
        decoded = self._decoder.decode_all(list(enumerate(items)))
        if decoded.bad:
            raise InputError(str(decoded.bad[0]))
        images = self._features.transform(decoded.pixels, decoded.present)
        return ModelInputs(self._features.model, decoded.pixels, images, decoded.present, decoded.camera)

    def stream(
        self, items: Iterable[Item], *, counts: EmbeddingCounts, total: int | None = None, skip_bad: bool = False
    ) -> Iterator[EmbeddedBatch]:
        """Embed items batch by batch; arguments and errors as `embed`.

        Args:
            items: any number of them.
            counts: filled while the batches come.
            total: number of items, if known: whether it is worth it to compile.
            skip_bad: as in `embed`.
        """
        decoded = decoded_batches(
            items, self._decoder, batch_size=self.batch_size, workers=self.workers, device=self.device, total=total
        )
        yield from self._features.run(
            self._checked(decoded, counts, skip_bad=skip_bad), counts, total=total, batch_size=self.batch_size
        )

    def _checked(
        self, batches: Iterable[DecodedItems], counts: EmbeddingCounts, *, skip_bad: bool
    ) -> Iterator[DecodedItems]:
        for batch in batches:
            if batch.bad and not skip_bad:
                raise refused(batch.bad[0])
            counts.bad += batch.bad
            counts.num_cut += batch.num_cut
            counts.shallow += batch.shallow
            if self._uses_cameras:
                counts.strange |= batch.strange
                counts.known |= batch.known
            counts.decoding += batch.seconds
            yield batch
