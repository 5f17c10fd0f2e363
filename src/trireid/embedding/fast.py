"""The fastest path of a model on a CUDA device: compiled blocks, recorded as a CUDA graph, where it is worth it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from trireid.data.transforms import Normalise
from trireid.errors import printable
from trireid.models.compiling import FAILURES, compiler_obstacle, use_compiler_cache
from trireid.models.recorded import RecordedModel
from trireid.models.reid import ReIDModel
from trireid.models.speed_choice import inference_speed
from trireid.types import Batch, ReIDOutput

_log = logging.getLogger(__name__)


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
        self._chosen: tuple[bool, bool] | None = None  # compiled, recorded
        self._batch_size = 0

    def prepare(self, num_items: int, *, batch_size: int) -> None:
        """Choose by the number of items, as far as it is known."""
        self._batch_size = batch_size
        if self._fast is False:
            return
        speed = inference_speed(
            compiled="auto", recorded="auto", device="cuda", num_items=num_items, obstacle=compiler_obstacle("cuda")
        )
        if self._fast:
            speed = replace(speed, compiled=True, recorded=True, reason="fast=True was given")
        if self._chosen is not None and (speed.compiled, speed.recorded) == self._chosen:
            return
        self._chosen = speed.compiled, speed.recorded
        _log.info("speed: %s", speed)
        if not speed.recorded:
            return
        if speed.compiled:
            use_compiler_cache()
            self._model.backbone.compile_blocks(cuts=True)
        pixels = _FromPixels(self._model, self._transform, compiled=speed.compiled)
        self._recorded = RecordedModel(pixels, dtype=self._dtype)

    def __call__(self, batch: Batch) -> ReIDOutput | None:
        """The output, or None where the plain model has to compute it; pixels on the device, the rest on the CPU."""
        if self._recorded is None or len(batch.images) != self._batch_size or not bool(batch.present.all()):
            return None
        try:
            uses_cameras = self._model.backbone.camera_embedding is not None
            return self._recorded(batch.images, batch.camera.to(batch.images.device) if uses_cameras else None)
        except FAILURES as error:  # no compiler, a driver, an operator that waits
            _log.warning(
                "the model cannot be compiled or recorded here (%s): it runs plain, with the same features",
                printable(str(error).strip().split("\n")[0], limit=200),
            )
            self._recorded, self._fast = None, False
            self._chosen = False, False
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
