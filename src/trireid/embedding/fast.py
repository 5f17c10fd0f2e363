"""The fastest path of a model on a CUDA device: compiled blocks, recorded as a CUDA graph, where it is worth it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from trireid.data.transforms import Normalise
from trireid.errors import printable
from trireid.models.recorded import RecordedModel
from trireid.models.reid import ReIDModel
from trireid.types import Batch, ReIDOutput

_log = logging.getLogger(__name__)

RECORD_FROM = 8_192
"""Items from which on a recording pays for the second that it takes."""
COMPILE_FROM = 200_000
"""Items from which on compilation pays: it takes about 20 s, and saves about 0.1 ms an item (ViT-B/16 on an H100)."""


class FastModel:
    """A model for full batches of complete items, plain for a few, recorded for many, also compiled for very many.

    Args:
        model: in evaluation mode, on a CUDA device.
        transform: makes images of pixels.
        dtype: autocast type; None: the model's own.
        fast: True compiles and records always, False never, None by the number of items.
    """

    def __init__(self, model: ReIDModel, transform: Normalise, *, dtype: torch.dtype | None, fast: bool | None) -> None:
        self._model, self._transform, self._dtype, self._fast = model, transform, dtype, fast
        self._recorded: RecordedModel | None = None
        self._batch_size = 0

    def prepare(self, num_items: int, *, batch_size: int) -> None:
        """Choose by the number of items, as far as it is known."""
        self._batch_size = batch_size
        record = self._fast is True or (self._fast is None and num_items >= RECORD_FROM)
        compiled = self._fast is True or (self._fast is None and num_items >= COMPILE_FROM)
        if not record or (self._recorded is not None and (self._model.backbone.is_compiled or not compiled)):
            return
        if compiled:
            self._model.backbone.compile_blocks(cuts=True)
        how = "compiled and recorded as a CUDA graph" if compiled else "recorded as a CUDA graph"
        _log.info("the model is %s, for full batches of complete items", how)
        self._recorded = RecordedModel(_FromPixels(self._model, self._transform, compiled=compiled), dtype=self._dtype)

    def __call__(self, batch: Batch) -> ReIDOutput | None:
        """The output, or None where the plain model has to compute it; pixels on the device, the rest on the CPU."""
        if self._recorded is None or len(batch.images) != self._batch_size or not bool(batch.present.all()):
            return None
        try:
            uses_cameras = self._model.backbone.camera_embedding is not None
            return self._recorded(batch.images, batch.camera.to(batch.images.device) if uses_cameras else None)
        except (RuntimeError, OSError, ImportError) as error:  # no compiler, a driver, an operator that waits
            _log.warning(
                "the model cannot be compiled or recorded here (%s): it runs plain, with the same features",
                printable(str(error).strip().split("\n")[0], limit=200),
            )
            self._recorded, self._fast = None, False
            return None


class _FromPixels(nn.Module):
    """A model that takes uint8 pixels of complete items, so that normalisation is part of a recording."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: ReIDModel, transform: Normalise, *, compiled: bool) -> None:
        super().__init__()
        self.model = model
        device = next(model.parameters()).device
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(transform, name), device=device)[:, None, None])
        self._normalise: Callable[[Tensor, Tensor, Tensor], Tensor] = (
            torch.compile(_normalised, dynamic=False) if compiled else _normalised
        )

    def forward(self, pixels: Tensor, camera: Tensor | None = None) -> ReIDOutput:
        """The output for uint8 pixels `(B, M, 3, H, W)`."""
        images = self._normalise(pixels, self.mean, self.std)
        output: ReIDOutput = self.model(images, camera=camera)
        return output


def _normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (pixels.float() / 255 - mean) / std


def plain_blocks(model: ReIDModel) -> AbstractContextManager[object]:
    """Run compiled blocks as they are: batches of other sizes or presence would compile them again."""
    if not model.backbone.is_compiled:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
