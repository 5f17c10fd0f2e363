"""Decoding, strictly: a damaged file is an error that names it, never grey pixels and never a retry."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from trireid.data.listing import UNREADABLE_IMAGE
from trireid.data.orientations import orient
from trireid.data.records import Fault, Record
from trireid.errors import DataError
from trireid.files import read_bytes

Progress = Callable[[int, int], None]
"""Called with (done, total) now and then during long work."""

REPAIR = "replace the file, or leave its triplet out with --skip-bad"
JPEG_START = b"\xff\xd8"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
PNG_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class ImageError(DataError):
    """An image that cannot be read; its message stays one line on its way out of a loader worker.

    A worker's error is made anew in the main process from its class and a text that holds the worker's whole
    traceback. The last line of that text is the message that was raised, and all that a user needs.
    """

    def __init__(self, message: str) -> None:
        last_line = message.rstrip().rsplit("\n", 1)[-1]
        super().__init__(last_line.rsplit(f"{type(self).__name__}: ", 1)[-1])


# torchvision >= 0.29 marks decode_jpeg as deprecated in favour of torchcodec, which is not there for the older torch
# that we allow. Python hides a DeprecationWarning of a library by default; silencing it here would not be safe between
# threads (`verify_images`).
def decode_image(path: Path) -> Tensor:
    """Decode a JPEG or PNG file, grey or colour, 8 or 16 bit, to uint8 RGB `(3, h, w)`.

    Raises:
        ImageError: the file is missing, empty, truncated, corrupt or of another format.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); restore the file") from error
    if data.startswith(JPEG_START):
        return _decode_jpeg(path, data)
    if data.startswith(PNG_START):
        return _decode_png(path, data)
    what = "an empty file" if not data else "neither a JPEG nor a PNG image"
    raise ImageError(f"{path}: {what}; {REPAIR}")


def _decode_jpeg(path: Path, data: bytes) -> Tensor:
    try:
        decoded: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise ImageError(f"{path}: a truncated or corrupt JPEG; {REPAIR}") from error
    return decoded


def _decode_png(path: Path, data: bytes) -> Tensor:
    # Pillow and not torchvision: torchvision 0.29 ends the process on a PNG with a wrong checksum.
    if PNG_END not in data:
        raise ImageError(f"{path}: a truncated PNG; {REPAIR}")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode.startswith("I"):  # 16-bit grey: keep the high byte, as 8-bit sensors would give
                grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
                pixels = np.repeat(grey[:, :, None], 3, axis=2)
            else:
                pixels = np.array(image.convert("RGB"))
    except PNG_ERRORS as error:
        raise ImageError(f"{path}: a truncated or corrupt PNG; {REPAIR}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def load_images(record: Record) -> list[Tensor | None]:
    """The pixels of a record, turned to its orientation, one uint8 `(3, h, w)` a modality, None where absent.

    Each file is decoded once.

    Raises:
        ImageError: an image cannot be read, or a strip has the wrong width.
    """
    return orient_sources(decode_sources(record), record.orientation)


def decode_sources(record: Record) -> list[Tensor | None]:
    """As `load_images`, as the files show it.

    Raises:
        ImageError: an image cannot be read, or a strip has the wrong width.
    """
    decoded = {path: decode_strip(path, width) for path, width in _strip_widths([record]).items()}
    images: list[Tensor | None] = []
    for source in record.images:
        image = None if source is None else decoded[source.path]
        if image is not None and source is not None and source.columns is not None:
            image = image[:, :, source.columns[0] : source.columns[1]]
        images.append(image)
    return images


def orient_sources(images: Iterable[Tensor | None], orientation: int) -> list[Tensor | None]:
    """Every image turned, see `trireid.data.orientations.orient`."""
    return [None if image is None else orient(image, orientation) for image in images]


def decode_strip(path: Path, width: int | None) -> Tensor:
    """Decode a file and check its width where the format says one (None: any)."""
    image = decode_image(path)
    if width is not None and image.shape[2] != width:
        raise ImageError(f"{path}: a strip must be {width} pixels wide, this one has {image.shape[2]}; {REPAIR}")
    return image


def _strip_widths(records: Iterable[Record]) -> dict[Path, int | None]:
    """Every file of the records, with the width it must have: the end of its last column range, or None."""
    widths: dict[Path, int | None] = {}
    for record in records:
        for source in record.images:
            if source is not None:
                end = source.columns[1] if source.columns else None
                widths[source.path] = max(end, widths.get(source.path) or 0) if end else None
    return widths


def verify_images(records: Iterable[Record], *, workers: int = 4, progress: Progress | None = None) -> list[Fault]:
    """Decode every file of the records once; a fault for each that cannot be read, in the order of the paths."""
    files = sorted(_strip_widths(records).items())

    def check(file: tuple[Path, int | None]) -> Fault | None:
        try:
            decode_strip(*file)
        except ImageError as error:
            return Fault(UNREADABLE_IMAGE, file[0], str(error))
        return None

    faults: list[Fault] = []
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for done, fault in enumerate(pool.map(check, files), start=1):
            if fault is not None:
                faults.append(fault)
            if progress is not None:
                progress(done, len(files))
    return faults
