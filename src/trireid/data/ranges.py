"""Map values of any bit depth to 8 bits.

8-bit images are used as they are. Deeper values (16-bit thermal, centikelvin, degrees as floats) are mapped linearly
from a range onto 0 to 255, clipped, and rounded to 256 levels, because the model takes 8-bit pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ValueRange = tuple[float, float] | Literal["file"] | None
"""(value of black, value of white); `file` for the percentiles of each file; or None if not known."""
Ranges = tuple[ValueRange, ...]
"""One per modality, in the order of `trireid.types.MODALITIES`."""

NO_RANGES: Ranges = (None, None, None)
PERCENTILES = (0.1, 99.9)
"""Percentiles of the values that become black and white in a measured range (linear interpolation)."""
MAX_FILES = 1000
"""A range is measured on at most so many images, evenly spaced in the sorted list."""
MAX_SAMPLES = 10_000
"""At most so many values of each image are used, evenly spaced."""


def to_8_bits(values: NDArray[Any], value_range: ValueRange) -> NDArray[np.uint8]:
    """Map values of any type to uint8; uint8 values are returned unchanged.

    Raises:
        ValueError: the values are deeper than 8 bits and their range is not known.
    """
    if values.dtype == np.uint8:
        return values
    if value_range is None:
        raise ValueError("no range of values is known")
    low, high = own_range(values) if value_range == "file" else value_range
    real: NDArray[Any] = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    scaled: NDArray[Any] = np.clip((real - low) / (high - low), 0, 1) * 255
    levels: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return levels


def own_range(values: NDArray[Any]) -> tuple[float, float]:
    """(low, high) percentiles of values; a constant gets a range of 1 above it, so that it becomes black."""
    low, high = (float(value) for value in np.percentile(values.astype(np.float64), PERCENTILES))
    return (low, high) if high > low else (low, low + max(1.0, abs(low) * 1e-6))


def evenly_spaced(items: Sequence[Any] | NDArray[Any], most: int) -> list[int]:
    """At most `most` evenly spaced positions, the first and the last included."""
    return sorted(set(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int).tolist()))


def sample(values: NDArray[Any]) -> NDArray[np.float64]:
    """At most `MAX_SAMPLES` of the values, evenly spaced."""
    flat = values.reshape(-1)
    return flat[evenly_spaced(flat, MAX_SAMPLES)].astype(np.float64)
