"""Decode the bytes of an image file to its values, in the bit depth of the file.

The content decides the format, not the file name. Decoding is strict: damage that a decoder would pass over with a
warning, or fill with grey pixels, is a `DecodeError` here.
"""

from __future__ import annotations

import io
import logging
import struct
import tokenize
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from trireid.data.deep_png import deep_colour
from trireid.data.libtiff import silence_libtiff
from trireid.data.records import ImageFacts

MAX_PIXELS = 2**26
"""The most pixels of an image; the header of a damaged file may claim any number."""
_max_pixels = ContextVar("max_pixels", default=MAX_PIXELS)
ORIENTATION_TAG = 274
_TIFF_PLAIN, _TIFF_JPEG = (1, 8, 32773, 32946), (6, 7)
"""TIFF compressions: none, deflate and PackBits, which tifffile decodes by itself; and the two kinds of JPEG."""
_PNG_END = b"IEND\xaeB`\x82"
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error,
    zlib.error, tokenize.TokenError, Image.DecompressionBombError,
)  # fmt: skip
Values = NDArray[Any]


class DecodeError(ValueError):
    """The content of an image file cannot be decoded; the message says why."""


@dataclass(frozen=True)
class DecodedImage:
    """An upright image: values `(h, w)` grey or `(h, w, 3)` colour, in the data type of the file, and its facts."""

    values: Values
    facts: ImageFacts


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode the content of a file.

    Args:
        data: the content.
        max_pixels: the most that its header may say; such a file is refused before it takes memory.

    Raises:
        DecodeError: it is empty, truncated, damaged, too large or of another format.
    """
    if not data:
        raise DecodeError("an empty file")
    name, decoder = _format_of(data)
    before = _max_pixels.set(max_pixels)
    try:
        values, orientation = decoder(data)
    except DecodeError:
        raise
    except _DAMAGE as error:
        raise DecodeError(f"a truncated or corrupt {name}{_reason(error)}") from error
    finally:
        _max_pixels.reset(before)
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values = values[:, :, : values.shape[2] - 1]  # without transparency
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or values.size == 0:
        raise DecodeError(f"a truncated or corrupt {name}")
    values = _upright(values, orientation)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        wrong = int(values.size - np.isfinite(values).sum())
        raise DecodeError(f"{wrong} of its {values.size} values are NaN or infinite: replace them by numbers")
    facts = ImageFacts(name, str(values.dtype), orientation, (values.shape[0], values.shape[1]), _is_flat(values))
    return DecodedImage(values, facts)


def _is_flat(values: Values) -> bool:
    """Whether all pixels are equal; a few of them tell for most images, and comparing all takes as long as decoding."""
    few = values[:: max(1, values.shape[0] // 8), :: max(1, values.shape[1] // 8)]
    return bool((few == values[0, 0]).all()) and bool((values == values[0, 0]).all())


def size_of(data: bytes) -> tuple[int, int] | None:
    """Height and width as the header of an image says; None where only decoding tells what is wrong with it."""
    try:
        if data.startswith(b"\xff\xd8"):
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            return int(height), int(width)
        with Image.open(io.BytesIO(data), formats=("PNG", "TIFF", "BMP", "WEBP")) as image:
            return image.height, image.width
    except _DAMAGE:
        return None


def is_deep(head: bytes, read_all: Callable[[], bytes]) -> bool:
    """Whether a file has more than 8 bits per value; it is decoded only if its first 32 bytes do not tell.

    Raises:
        DecodeError: the file is damaged, so the depth cannot be read.
    """
    if head.startswith(b"\x89PNG"):
        return len(head) > 24 and head[24] == 16
    if head.startswith((b"\xff\xd8", b"BM", b"RIFF")):
        return False
    return decode(read_all()).facts.deep


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep Pillow's warnings about metadata off the terminal; damaged pixels are errors in any case.

    Enter it before threads start, because warning filters are global to the process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _format_of(data: bytes) -> tuple[str, Callable[[bytes], tuple[Values, int]]]:
    if data.startswith(b"\xff\xd8"):
        return "JPEG", _jpeg
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", _png
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF", _tiff
    if data.startswith(b"BM"):
        return "BMP", lambda data: _pillow(data, "BMP")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP", lambda data: _pillow(data, "WEBP")
    if data.startswith(b"\x93NUMPY"):
        return "NPY", _npy
    raise DecodeError("not a JPEG, PNG, TIFF, BMP, WebP or NPY image")


def _jpeg(data: bytes) -> tuple[Values, int]:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        if "subsampling" not in str(error):
            raise
        # TurboJPEG supports the usual chroma subsamplings only. Pillow supports all and gives the same pixels, but
        # does not report damage inside the data.
        return _pillow(data, "JPEG")
    _check_size(height, width)
    orientation = 1
    if b"Exif\0\0" in data[: 2**17]:  # a marker holds less than half of that
        with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
            orientation = _orientation(image)
    if space in ("CMYK", "YCCK"):
        simplejpeg.decode_jpeg(data, "CMYK")  # for its errors
        with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
            return np.array(image.convert("RGB")), orientation
    return simplejpeg.decode_jpeg(data, "RGB"), orientation


def _png(data: bytes) -> tuple[Values, int]:
    if _PNG_END not in data:
        raise DecodeError("a truncated PNG")
    values, orientation = _pillow(data, "PNG")
    if data[24] == 16 and values.ndim == 3:
        return deep_colour(data), orientation  # Pillow keeps 8 bits of it
    return values, orientation


def _pillow(data: bytes, format: str) -> tuple[Values, int]:
    with Image.open(io.BytesIO(data), formats=("JPEG", "MPO") if format == "JPEG" else (format,)) as image:
        _check_size(image.height, image.width)
        if format != "JPEG":  # which may hold a preview after the image
            _check_single(getattr(image, "n_frames", 1))
        orientation = _orientation(image)
        if image.mode.startswith("I"):  # older Pillow gives 32-bit values for a 16-bit PNG
            return np.asarray(image).astype(np.uint16), orientation
        return np.array(image.convert("RGB")), orientation


def _tiff(data: bytes) -> tuple[Values, int]:
    import tifffile

    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # its message is part of the error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        _check_single(len(file.pages))
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        _check_size(page.imagelength, page.imagewidth)
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or not all(page.databytecounts) or max(ends) > len(data):  # tifffile would fill in zeros
            raise DecodeError("a truncated TIFF")
        dtype, compression = page.dtype, int(page.compression)
        if compression in _TIFF_JPEG:
            raise DecodeError("a TIFF with JPEG compression, which hides damage: save it with LZW or deflate")
        # tifffile keeps every depth; Pillow, with libtiff, decodes the compressions that tifffile does not.
        plain = dtype is not None and int(page.photometric) in ((1, 2) if dtype == np.uint8 else (0, 1, 2))
        if plain and compression in _TIFF_PLAIN and int(page.predictor) in (1, 2) and page.bitspersample % 8 == 0:
            return _tiff_values(page)
        deep = dtype is None or dtype not in (np.uint8, np.bool_)
        if deep and (page.samplesperpixel != 1 or dtype not in (np.uint16, np.int16, np.int32, np.float32)):
            name = getattr(page.compression, "name", page.compression)
            raise DecodeError(
                f"a TIFF of {dtype} values, {page.samplesperpixel} per pixel, compressed by {name}: save it without "
                "compression or with deflate, without a float predictor"
            )
    return _pillow_tiff(data, deep=deep)


def _tiff_values(page: Any) -> tuple[Values, int]:
    """Values of a page of tifffile."""
    if page.axes not in ("YX", "YXS", "SYX"):
        raise DecodeError(f"a TIFF with the axes {page.axes}: save a single grey or colour image")
    values = page.asarray()
    values = np.moveaxis(values, 0, 2) if page.axes == "SYX" else values
    tag = page.tags.get(ORIENTATION_TAG)
    return _checked(_native(values), "TIFF"), _known_orientation(tag and tag.value)


def _pillow_tiff(data: bytes, *, deep: bool) -> tuple[Values, int]:
    """Decode a compression that needs libtiff, or an 8-bit palette or negative."""
    silence_libtiff()
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
        tag = _known_orientation(image.tag_v2.get(ORIENTATION_TAG))  # type: ignore[attr-defined]
        values = _native(np.array(image if deep else image.convert("RGB")))
        # Pillow rotates a TIFF when it loads it and removes the tag. Undo it, because `decode` rotates every format.
        turned = _orientation(image) == 1
    return _upright(values, {6: 8, 8: 6}.get(tag, tag)) if turned else values, tag


def _native(values: Values) -> Values:
    """The same values in the byte order of this machine."""
    return values.astype(values.dtype.newbyteorder("="))


def _npy(data: bytes) -> tuple[Values, int]:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise DecodeError(f"an NPY file of version {version[0]}.{version[1]}: save it with numpy.save")
    shape, fortran, dtype = readers[version](file)
    if len(shape) == 3 and shape[2] not in (1, 2, 3, 4):
        hint = ": put the channels last" if shape[0] in (1, 3) else ""
        raise DecodeError(f"an NPY array of shape {shape}, not (h, w) or (h, w, 3){hint}")
    if len(shape) not in (2, 3) or dtype.kind not in "iuf":
        raise DecodeError(f"an NPY array of shape {shape} and type {dtype}, not numbers of shape (h, w) or (h, w, 3)")
    _check_size(shape[0], shape[1])
    count = int(np.prod(shape))
    if len(data) - file.tell() != count * dtype.itemsize:
        raise DecodeError("an NPY file whose length is not that of its array")
    flat = np.frombuffer(data, dtype=dtype, count=count, offset=file.tell())
    values = flat.reshape(shape, order="F" if fortran else "C")
    return _checked(np.ascontiguousarray(_native(values)), "NPY"), 1


def _checked(values: Values, format: str) -> Values:
    """Refuse values that are not numbers or have more than 4 channels; float16 becomes float32."""
    if values.dtype.kind not in "iuf" or (values.ndim == 3 and values.shape[2] > 4):
        raise DecodeError(f"a {format} of {values.dtype} values of shape {values.shape}, not grey or colour")
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _check_size(height: int, width: int) -> None:
    most = _max_pixels.get()
    if height < 1 or width < 1 or height * width > most:
        raise DecodeError(f"its header says {height} x {width} pixels; at most {most} are read")


def _check_single(count: int) -> None:
    if count == 0:
        raise DecodeError("a truncated TIFF")
    if count != 1:
        raise DecodeError(f"it holds {count} images: save the one you need in a file of its own")


def _orientation(image: Image.Image) -> int:
    return _known_orientation(image.getexif().get(ORIENTATION_TAG))


def _known_orientation(tag: Any) -> int:
    """The tag, or 1 if it is missing or invalid (image viewers ignore such tags)."""
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def _upright(values: Values, orientation: int) -> Values:
    """Rotate or mirror values `(h, w, ...)` by an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)  # swap rows and columns
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _reason(error: Exception) -> str:
    """The decoder's own message in brackets, on one printable line; empty if it says nothing useful."""
    words = "".join(letter if letter.isprintable() else " " for letter in str(error))[:120].strip()
    known = isinstance(error, (ValueError, OSError, Image.DecompressionBombError)) and "BytesIO" not in words
    return f" ({words})" if words and known else ""
