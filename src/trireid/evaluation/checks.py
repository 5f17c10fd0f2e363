"""Checks of the arguments of public functions, made before anything is computed."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from trireid.errors import InputError
from trireid.types import Labels


def check_tensors(name: str, *values: Tensor) -> None:
    """Raise InputError unless all are dense tensors of real numbers that lie on a real device."""
    for value in values:
        if not isinstance(value, Tensor):
            raise InputError(f"{name} got {type(value).__name__}; allowed are tensors, e.g. torch.as_tensor(...)")
        if value.layout != torch.strided or value.is_quantized:
            raise InputError(f"{name} got a tensor that is sparse or quantised; give a dense tensor")
        if value.is_meta or value.is_complex():
            given = "on the device meta" if value.is_meta else f"of type {value.dtype}"
            raise InputError(f"{name} got a tensor {given}; allowed are real numbers on a real device")


def check_distances(name: str, *values: Tensor) -> None:
    """Raise InputError unless all are dense tensors of a type whose numbers can be sorted."""
    check_tensors(name, *values)
    for value in values:
        if value.is_floating_point() and value.dtype.itemsize < 2:
            raise InputError(f"{name} got distances of type {value.dtype}; give them as float16 or wider")


def check_sizes(name: str, **sizes: object) -> None:
    """Raise InputError unless all are whole numbers of at least 1."""
    for setting, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Integral) or int(size) < 1:
            raise InputError(f"{name} got {setting}={size!r}; it must be a whole number, at least 1")


def check_labels(name: str, *sides: Labels) -> None:
    """Raise InputError unless each side has one identity, camera, scene and item for each of its items."""
    for side in sides:
        shapes = {column: tuple(value.shape) for column, value in vars(side).items()}
        if set(shapes.values()) != {(len(side),)}:
            raise InputError(f"{name} got labels of the shapes {shapes}; all labels of a side must have the shape (Q,)")
