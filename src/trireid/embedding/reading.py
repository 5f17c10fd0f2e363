"""The images of an item as arrays: files, arrays, PIL images and tensors, cut by their boxes. No torch of its own."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trireid.data.formats import Values
from trireid.data.ranges import ValueRange
from trireid.data.reading import SKIP, ImageError, read_image, to_levels
from trireid.embedding.items import Box
from trireid.errors import InputError, printable


def values_of(given: Any, source: str) -> Values:
    """The values `(h, w)` or `(h, w, 3)` of an image, upright, in its own bit depth.

    Args:
        given: path, numpy array `(h, w)` or `(h, w, 3)`, PIL image, or tensor `(3, h, w)` or `(1, h, w)`; a fourth
            channel is not used.
        source: what an error names.

    Raises:
        ImageError: a file cannot be read, or the array is no image.
    """
    if isinstance(given, str | os.PathLike):
        try:
            return read_image(Path(given)).values
        except ImageError as error:  # there is no triplet here, and not every command has --skip-bad
            raise ImageError(str(error).replace(f", or {SKIP}", "")) from error
        except ValueError as error:  # a NUL in the path
            raise ImageError(f"{printable(source)}: cannot be read ({error})") from error
    if isinstance(given, Image.Image):
        try:
            upright = ImageOps.exif_transpose(given)
            deep = upright.mode.startswith(("I", "F"))
            return _checked(np.asarray(upright if deep else upright.convert("RGB")), source)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes only here; the first is a truncated file
            reason = printable(str(error), limit=120)
            raise ImageError(f"{source} is a PIL image that cannot be decoded ({reason}): replace it") from error
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(given, torch.Tensor):
        if given.ndim != 3 or given.shape[0] not in (1, 3, 4):
            raise ImageError(f"{source} is a tensor of shape {tuple(given.shape)}: give (3, h, w) or (1, h, w)")
        given = given.detach().cpu().permute(1, 2, 0).numpy()
    if not isinstance(given, np.ndarray):
        raise ImageError(
            f"{source} is a {type(given).__name__}: give a path, a numpy array, a PIL image or a torch tensor"
        )
    return _checked(given, source)


def _checked(values: Values, source: str) -> Values:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim == 3 and values.shape[2] == 4:  # the transparency, which PIL leaves out as well
        values = values[:, :, :3]
    if values.size == 0 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3):
        raise ImageError(f"{source} has the shape {values.shape}: give (h, w) or (h, w, 3) with h and w above 0")
    if values.dtype.kind not in "iuf":
        raise ImageError(f"{source} holds {values.dtype} values: give uint8, or deeper numbers with a known range")
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError(f"{source} holds NaN or infinity: replace them by numbers")
    # torch takes writable memory in the byte order of the machine, without steps backwards.
    return np.require(values, dtype=values.dtype.newbyteorder("="), requirements=["C", "W"])


def levels_of(given: Any, values: Values, value_range: ValueRange, source: str, modality: str) -> NDArray[np.uint8]:
    """The values of an image in the 256 levels of a model.

    Raises:
        ImageError: they have more than 8 bits and there is no range.
    """
    if values.dtype == np.uint8 or value_range is not None:
        return to_levels(source, values, value_range, modality)
    is_file = isinstance(given, str | os.PathLike)
    if (
        not is_file
        and values.dtype.kind in "iu"
        and values.dtype != np.uint16
        and values.min() >= 0
        and values.max() <= 255
    ):
        raise ImageError(
            f"{source} holds {values.dtype} numbers from {values.min()} to {values.max()}: convert pixels of 8 bits to "
            "uint8 (in numpy: image.astype('uint8')); deeper ones need a range"
        )
    raise ImageError(
        f"{source} holds {values.dtype} values, and the model was trained on images of 8 bits: give the range that "
        f"becomes black to white, ranges={{'{modality}': (LOW, HIGH)}} of trireid.Embedder or "
        f"`--set data.range.{modality}=[LOW,HIGH]` of `trireid embed`, or convert the images to 8 bits"
    )


def cut_box(values: Values, box: Box | None, source: str) -> tuple[Values, bool]:
    """The part of an image in a box, widened to whole pixels, and whether the box reached beyond the image.

    Raises:
        InputError: the box lies outside of the image.
    """
    if box is None:
        return values, False
    height, width = values.shape[:2]
    left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise InputError(
            f"the box ({', '.join(f'{each:g}' for each in box)}) lies outside of {source}, which has {width} x "
            f"{height} pixels (width x height); boxes are left, top, right, bottom"
        )
    inside = values[max(0, top) : min(height, bottom), max(0, left) : min(width, right)]
    return np.ascontiguousarray(inside), left < 0 or top < 0 or right > width or bottom > height
