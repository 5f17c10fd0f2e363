"""How an evaluation runs a model whose full batches are recorded as a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trireid.errors import printable
from trireid.evaluation.features import run_model
from trireid.models.compiling import FAILURES
from trireid.models.recorded import RecordedModel
from trireid.types import Batch, ReIDOutput

_log = logging.getLogger(__name__)


class RecordedRun:
    """`run_model` with the same outputs; full batches of complete items are replays of a recording.

    Where a recording fails, a warning says so, and that batch and all later ones are run normally.

    Args:
        model: on a CUDA device. Its weights may change, as long as they stay where they are.
        batch_size: of full batches.
        dtype: autocast type; None: the model's own.
    """

    def __init__(self, model: nn.Module, *, batch_size: int, dtype: torch.dtype | None) -> None:
        self._model, self._batch_size, self._dtype = model, batch_size, dtype
        self._recorded: RecordedModel | None = RecordedModel(model, dtype=dtype)

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        present: Tensor,
        device: torch.device,
        dtype: torch.dtype | None = None,
        transform: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> ReIDOutput:
        """The output of a model for one batch, arguments as `run_model`; it holds until the next batch."""
        usual = model is self._model and dtype == self._dtype and len(batch.item) == self._batch_size
        if self._recorded is not None and usual and bool(present.all()):
            moved = batch.to(device, non_blocking=True)
            images = moved.images if transform is None else transform(moved.images, moved.present)
            try:
                return self._recorded(images, moved.camera)
            except FAILURES as error:  # a driver, memory, an operator that waits
                self._recorded = None
                _log.warning(
                    "evaluations cannot be recorded here (%s: %s): they run without, with the same features",
                    type(error).__name__,
                    printable(str(error).strip().split("\n")[0], limit=200),
                )
        return run_model(model, batch, present=present, device=device, dtype=dtype, transform=transform)
