"""Inference recorded once as a CUDA graph and replayed: no Python between the kernels.

A fast GPU finishes a kernel of a slimmed model before Python has launched the next; a replay is one launch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models.compiling import room_to_compile
from trireid.types import ReIDOutput

WARM_UP = 3
"""Plain calls before a recording: libraries choose their kernels, compiled blocks compile."""


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
        self._recordings: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, ReIDOutput]] = {}

    def __call__(self, images: Tensor) -> ReIDOutput:
        """The output for images `(B, M, 3, H, W)`; its tensors hold until the next call with this shape."""
        with torch.inference_mode():
            if images.shape not in self._recordings:
                self._recordings[images.shape] = self._record(images)
            graph, shown, output = self._recordings[images.shape]
            shown.copy_(images, non_blocking=True)
            graph.replay()
        return output

    def _record(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, ReIDOutput]:
        self._model.eval()
        shown, graph = images.clone(), torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), room_to_compile():
            for _ in range(WARM_UP):
                self._forward(shown)
        torch.cuda.current_stream().wait_stream(self._stream)
        with torch.cuda.graph(graph, stream=self._stream):
            output = self._forward(shown)
        return graph, shown, output

    def _forward(self, images: Tensor) -> ReIDOutput:
        with torch.autocast("cuda", dtype=self._dtype, enabled=self._dtype is not None):
            output: ReIDOutput = self._model(images)
        return output
