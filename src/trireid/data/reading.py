"""Read an image file to numbers, with an error that names it. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trireid.data.formats import DecodedImage, DecodeError, Values, decode
from trireid.data.ranges import ValueRange, to_8_bits
from trireid.errors import DataError
from trireid.files import read_bytes

SKIP = "leave its triplet out with --skip-bad"
REPAIR = f"replace the file, or {SKIP}"


class ImageError(DataError):
    """An image that cannot be read; its message is one line, also when it comes from a worker of a loader.

    torch raises the error of a worker again in the main process, with the worker's whole traceback as its message.
    The last line of that text is the original message, which is all that a user needs.
    """

    def __init__(self, message: str) -> None:
        last_line = message.rstrip().rsplit("\n", 1)[-1]
        super().__init__(last_line.rsplit(f"{type(self).__name__}: ", 1)[-1])


def read_image(path: Path) -> DecodedImage:
    """Decode a file (JPEG, PNG, TIFF, BMP, WebP, NPY; grey or colour) to its own values, upright.

    Raises:
        ImageError: it is missing, not a regular file, empty, truncated, corrupt, too large or of another format.
    """
    try:
        return decode(image_content(path))
    except DecodeError as error:
        raise ImageError(f"{path}: {error}; {REPAIR}") from error


def unreadable(path: Path, error: OSError) -> ImageError:
    """The error for a file that the system does not let read."""
    what = f"{path}: cannot be read ({error.strerror})"
    return ImageError(f"{what}; restore the file, or {SKIP}")


def image_content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return read_bytes(path)
    except OSError as error:
        raise unreadable(path, error) from error


def to_levels(source: Path | str, values: Values, value_range: ValueRange, modality: str = "") -> NDArray[np.uint8]:
    """Decoded values in the 256 levels of a model; `source` is what an error names.

    Raises:
        ImageError: the values have more than 8 bits and there is no range.
    """
    if values.dtype != np.uint8 and value_range is None:
        setting = f"data.range.{modality or 'tir'}"
        raise ImageError(
            f"{source}: {values.dtype} values, and no range is known that maps them to 8 bits (the training images "
            f"have 8 bits, or there are none): set {setting}=[LOW,HIGH], or {setting}=file for the range of each file"
        )
    return to_8_bits(values, value_range)
