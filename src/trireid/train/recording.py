"""A training step recorded once as a CUDA graph and replayed: one launch instead of about a thousand.

With small models and small batches, the time to launch kernels from Python is the limit; a replay runs no Python.
"""

from __future__ import annotations

import atexit
import logging
import weakref
from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from trireid.errors import printable
from trireid.models.compiling import FAILURES
from trireid.models.recorded import random_numbers_kept
from trireid.models.reid import ReIDModel
from trireid.types import Batch

Gradients = Callable[[Batch], dict[str, Tensor]]

WARM_UP = 4
"""Normal steps before a recording: libraries choose kernels, compiled blocks compile, buffers are allocated."""

SPARE_MEMORY = 0.1
"""Share of the device's memory that a recording, which keeps its own, must leave free: evaluations need some."""

_log = logging.getLogger(__name__)


class RecordedGradients:
    """Forward, loss and backward of a batch: run normally a few times, then recorded, then replayed.

    A recording holds for one shape of the batch and one path through the model. A batch of another shape is run
    normally; when the model starts to drop patches (`Backbone.cuts_in_training`), a new recording is made. Where a
    recording fails, a warning says so, and this and all later batches are run normally.

    Args:
        gradients: takes a batch on a CUDA device and puts gradients on the parameters of `model`; it may not wait for
            the device, and nothing but the batch may differ between its calls.
        model: whose `.grad` a replay writes; they may be set to None in between.
    """

    def __init__(self, gradients: Gradients, model: ReIDModel) -> None:
        self._gradients, self._model = gradients, model
        self._stream = torch.cuda.Stream()
        self._failed = False
        self._forget()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # A group of processes can only be left when no recording holds messages of it. Handlers run in the order
            # opposite to that of their registration: this one before the group is left.
            forget = weakref.WeakMethod(self._forget)
            atexit.register(lambda: None if (free := forget()) is None else free())

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of the loss of this batch, new tensors."""
        if self._model.backbone.cuts_in_training != self._cuts:
            self._forget()
        if self._graph is None and self._num_plain < WARM_UP:
            self._num_plain += 1
            return self._on_side_stream(batch)
        if self._graph is None and not self._failed:
            self._try_to_record(batch)
        if self._graph is None or batch.images.shape != self._batch.images.shape:
            return self._on_side_stream(batch)
        for field in fields(Batch):
            getattr(self._batch, field.name).copy_(getattr(batch, field.name), non_blocking=True)
        self._graph.replay()
        for parameter, gradient in self._written:
            parameter.grad = gradient
        return dict(zip(self._names, self._values.clone().unbind(), strict=True))

    @property
    def is_recorded(self) -> bool:
        """Whether batches are replayed now."""
        return self._graph is not None

    def _forget(self) -> None:
        """Free the recording and its memory."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._written: list[tuple[nn.Parameter, Tensor]] = []
        self._values = torch.empty(0)
        self._num_plain = 0
        self._cuts = self._model.backbone.cuts_in_training

    def _on_side_stream(self, batch: Batch) -> dict[str, Tensor]:
        """A normal step before a recording: nothing of it may use the default stream."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            terms = self._gradients(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return {name: value.detach() for name, value in terms.items()}

    def _try_to_record(self, batch: Batch) -> None:
        """Record; nothing is computed meanwhile, so that the batch of a failed recording can still be run."""
        try:
            with random_numbers_kept(batch.images.device):
                self._record(batch)
        except FAILURES as error:
            self._forget()
            self._failed = True
            for parameter in self._model.parameters():
                parameter.grad = None
            _log.warning(
                "a training step cannot be recorded here (%s: %s): the run goes on without, with the same results; "
                "train.cuda_graph=false switches the attempt off",
                type(error).__name__,
                printable(str(error).strip().split("\n")[0], limit=200),
            )

    def _record(self, batch: Batch) -> None:
        self._batch = replace(batch, **{field.name: getattr(batch, field.name).clone() for field in fields(Batch)})
        for parameter in self._model.parameters():
            parameter.grad = None
        graph = torch.cuda.CUDAGraph()
        # Threads of a group of processes may look at events meanwhile; an error is what this thread does wrong.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            terms = self._gradients(self._batch)
            self._names = list(terms)
            self._values = torch.stack([value.detach().float() for value in terms.values()])
        free, total = torch.cuda.mem_get_info(batch.images.device)
        if free < SPARE_MEMORY * total:
            raise RuntimeError(f"it leaves only {free / 2**30:.1f} GiB of memory free for all else, evaluations too")
        self._written = [(each, each.grad) for each in self._model.parameters() if each.grad is not None]
        self._graph = graph


def record_steps(gradients: Gradients, model: ReIDModel, *, requested: bool, possible: bool) -> Gradients:
    """The same function; recorded if requested and possible (CUDA, complete triplets)."""
    if not requested:
        return gradients
    if not possible:
        _log.warning(
            "train.cuda_graph has no effect here: it needs a CUDA device, and triplets none of which lacks a modality"
        )
        return gradients
    return RecordedGradients(gradients, model)
