"""Resize 8-bit images with numpy alone, to the same values as torchvision's resizing of uint8 images on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trireid.names import Interpolation

Pixels = NDArray[np.uint8]
Taps = tuple[NDArray[np.int64], NDArray[np.int32], int]
"""Places `(out, K)` and weights `(out, K)` of the values that make an output value, and the bits of the weights."""


def resize_pixels(pixels: Pixels, size: tuple[int, int], interpolation: Interpolation) -> Pixels:
    """Resize `(h, w)` or `(h, w, C)` to (height, width), antialiased; rows first, each pass rounded to 8 bits.

    Source: the uint8 form of `interpolate(antialias=True)` in torch, which follows Pillow with weights of 16 bits.
    """
    across = _resize_axis(pixels, 1, size[1], interpolation)
    return _resize_axis(across, 0, size[0], interpolation)


def _resize_axis(pixels: Pixels, axis: int, length: int, interpolation: Interpolation) -> Pixels:
    if pixels.shape[axis] == length:
        return pixels
    places, weights, bits = _taps(pixels.shape[axis], length, interpolation)
    moved = np.moveaxis(pixels, axis, -1).astype(np.int32)  # (..., in)
    total = np.full((*moved.shape[:-1], length), 1 << (bits - 1), dtype=np.int32)
    for tap in range(places.shape[1]):
        total += moved[..., places[:, tap]] * weights[:, tap]
    values: Pixels = np.clip(total >> bits, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(values, -1, axis))


@lru_cache(maxsize=256)
def _taps(source: int, length: int, interpolation: Interpolation) -> Taps:
    """What each of `length` output values is made of, out of `source` input values."""
    kernel, radius = _KERNELS[interpolation]
    scale = source / length
    stretch = max(scale, 1.0)
    support = radius * stretch
    most = math.ceil(support) * 2 + 1
    places = np.zeros((length, most), dtype=np.int64)
    exact = np.zeros((length, most))
    for index in range(length):
        centre = scale * (index + 0.5)
        first = max(int(centre - support + 0.5), 0)
        count = min(min(int(centre + support + 0.5), source) - first, most)
        values = np.array([kernel((place + first - centre + 0.5) / stretch) for place in range(count)])
        places[index, :count] = np.arange(first, first + count)
        exact[index, :count] = values / values.sum()
    bits = 0
    while bits < 22 and int(0.5 + exact.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    weights = np.trunc(exact * (1 << bits) + np.where(exact < 0, -0.5, 0.5)).astype(np.int32)
    return places, weights, bits


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _cubic(x: float) -> float:
    """Keys' kernel with a = -0.5."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0


_KERNELS: dict[Interpolation, tuple[Callable[[float], float], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}
