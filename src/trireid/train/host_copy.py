"""Copies of weights and optimiser states in the memory of the host, made in milliseconds between two steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 64 * 2**20
"""Bytes of page-locked memory that are taken at a time: torch rounds each request up to a power of two."""
_ALIGNMENT = 64


class HostCopy:
    """Copies the tensors of nested dictionaries and lists to the host.

    The copies of CUDA tensors lie in page-locked memory, which is an order of magnitude faster than to copy into fresh
    pages; torch keeps it for the next copy. Where the system has none left, they lie in ordinary memory.

    Example:
        >>> weight = torch.zeros(2)
        >>> copied = HostCopy()({"weight": weight, "step": 3})
        >>> weight.add_(1)
        tensor([1., 1.])
        >>> copied
        {'weight': tensor([0., 0.]), 'step': 3}
    """

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self._locked = True

    def __call__(self, tree: Any) -> Any:
        """A copy that shares no memory with the tree; what is neither a tensor nor a container is taken over."""
        if isinstance(tree, Tensor):
            return self._copy(tree.detach())
        if isinstance(tree, dict):
            return {name: self(value) for name, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(self(value) for value in tree)
        return tree

    def _copy(self, value: Tensor) -> Tensor:
        if not value.is_cuda or not value.numel():
            return value.to("cpu", copy=True).contiguous()
        place = self._take(value.numel() * value.element_size()).view(value.dtype).view(value.shape)
        return place.copy_(value)  # waits, so that no other thread has to ask the device whether it is complete

    def _take(self, size: int) -> Tensor:
        """`(size,)` uint8 with a storage of its own, so that a file of torch holds no more than this."""
        if self._used + size > len(self._chunk):
            self._chunk, self._used = self._empty(max(size, CHUNK)), 0
        taken = self._chunk[self._used : self._used + size]
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return torch.from_numpy(taken.numpy())

    def _empty(self, size: int) -> Tensor:
        if self._locked:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError:  # the limit of page-locked memory
                self._locked = False
        return torch.empty(size, dtype=torch.uint8)
