"""Inference recorded once as a CUDA graph and replayed: no Python between the kernels.

A fast GPU finishes a kernel of a slimmed model before Python has launched the next; a replay is one launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models.compiling import room_to_compile
from trireid.types import ReIDOutput

WARM_UP = 3
"""Plain calls before a recording: libraries choose their kernels, compiled blocks compile."""


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Give a device a sound generator again if what runs inside fails: a broken recording leaves it unusable."""
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    before, done = generator.clone_state(), False
    try:
        yield
        done = True
    finally:
        if not done:
            generator.graphsafe_set_state(before)


@dataclass(frozen=True)
class _Recording:
    """A graph, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    camera: Tensor | None
    output: ReIDOutput


class RecordedModel:
    """A model in evaluation for complete triplets on a CUDA device, one recording per shape of images.

    Args:
        model: on a CUDA device. Its weights may change, as long as they stay where they are.
        dtype: autocast type, None for the model's own.

    Raises:
        InputError: the model is not on a CUDA device.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None = None) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise InputError(f"the model is on {device}; a recording needs a CUDA device: model.to('cuda')")
        self._model, self._dtype = model, dtype
        self._stream = torch.cuda.Stream(device)
        self._recordings: dict[tuple[torch.Size, bool], _Recording] = {}

    def __call__(self, images: Tensor, camera: Tensor | None = None) -> ReIDOutput:
        """The output for images `(B, M, 3, H, W)`; its tensors hold until the next call with this shape.

        Args:
            images: what the model takes.
            camera: `(B,)` int64 camera indices on the device, -1 unknown; None: all unknown.
        """
        with torch.inference_mode():
            kind = images.shape, camera is None
            if kind not in self._recordings:
                self._recordings[kind] = self._record(images, camera)
            recording = self._recordings[kind]
            recording.images.copy_(images, non_blocking=True)
            if recording.camera is not None and camera is not None:
                recording.camera.copy_(camera, non_blocking=True)
            recording.graph.replay()
        return recording.output

    def _record(self, images: Tensor, camera: Tensor | None) -> _Recording:
        self._model.eval()
        shown, cameras = images.clone(), None if camera is None else camera.clone()
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), room_to_compile():
            for _ in range(WARM_UP):
                self._forward(shown, cameras)
        torch.cuda.current_stream().wait_stream(self._stream)
        # Other threads, which load batches or write a checkpoint, may do meanwhile what no recording may.
        recording = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        with random_numbers_kept(images.device), recording:
            output = self._forward(shown, cameras)
        return _Recording(graph, shown, cameras, output)

    def _forward(self, images: Tensor, camera: Tensor | None) -> ReIDOutput:
        with torch.autocast("cuda", dtype=self._dtype, enabled=self._dtype is not None):
            output: ReIDOutput = self._model(images) if camera is None else self._model(images, camera=camera)
        return output
