"""Strict decoding: a damaged file is an error that names it; it is never read as grey pixels or tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trireid.data.formats import DecodedImage, DecodeError, Values, is_deep, quiet_decoders
from trireid.data.listing import UNREADABLE_IMAGE
from trireid.data.orientations import orient
from trireid.data.ranges import NO_RANGES, Ranges, ValueRange
from trireid.data.reading import REPAIR, ImageError, image_content, read_image, to_levels, unreadable
from trireid.data.records import Fault, ImageFacts, ImageSource, Record
from trireid.files import read_head
from trireid.types import MODALITIES

Progress = Callable[[int, int], None]
"""Called with (done, total) during long work."""
Seen = Callable[[Path, ImageFacts], None]
"""Called with path and facts of every decoded file; threads may call it at the same time."""


def decode_image(path: Path, value_range: ValueRange = "file") -> Tensor:
    """Decode a single file to uint8 RGB `(3, h, w)`.

    Args:
        path: image file, see `read_image`.
        value_range: which values become 0 and 255 where the file has more than 8 bits, see `trireid.data.ranges`. A
            model needs the range that it was trained with, see `load_images`.

    Raises:
        ImageError: as `read_image`, or the file has more than 8 bits and there is no range.
    """
    image = read_image(path)
    return to_pixels(path, image.values, value_range)


def is_deep_file(path: Path) -> bool:
    """Whether a file has more than 8 bits per value; for most formats only its first bytes are read.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return is_deep(_head(path), lambda: image_content(path))
    except DecodeError as error:
        raise ImageError(f"{path}: {error}; {REPAIR}") from error


def _head(path: Path) -> bytes:
    try:
        return read_head(path, 32)
    except OSError as error:
        raise unreadable(path, error) from error


def to_pixels(source: Path | str, values: Values, value_range: ValueRange = None, modality: str = "") -> Tensor:
    """Decoded values `(h, w)` or `(h, w, 3)` as uint8 RGB `(3, h, w)`; `source` is what an error names.

    Raises:
        ImageError: the values have more than 8 bits and there is no range.
    """
    pixels = torch.from_numpy(to_levels(source, values, value_range, modality))
    if pixels.ndim == 2:
        return pixels.expand(3, *pixels.shape).contiguous()
    return pixels.permute(2, 0, 1).contiguous()


def load_images(record: Record, ranges: Ranges = NO_RANGES) -> list[Tensor | None]:
    """Decode the images of a record: one uint8 `(3, h, w)` per modality, None where absent.

    Each file is decoded once. The images are rotated to the orientation of the record.

    Args:
        record: the triplet.
        ranges: value range per modality for images of more than 8 bits; not needed for 8-bit images.

    Raises:
        ImageError: an image cannot be read, a strip has the wrong width, or a range is missing.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "rgb.png")
        ...     Image.new("RGB", (4, 2)).save(path)
        ...     images = load_images(Record("1", (ImageSource(path), None, None), identity="0001"))
        >>> images[0].shape, images[1]
        (torch.Size([3, 2, 4]), None)
    """
    return orient_sources(decode_sources(record, ranges), record.orientation)


def decode_sources(record: Record, ranges: Ranges = NO_RANGES, seen: Seen | None = None) -> list[Tensor | None]:
    """As `load_images`, without the orientation of the record.

    Raises:
        ImageError: as `load_images`.
    """
    decoded: dict[Path, DecodedImage] = {}
    for path, width in _strip_widths([record]).items():
        decoded[path] = read_strip(path, width)
        if seen is not None:
            seen(path, decoded[path].facts)
    return [
        None
        if source is None
        else to_pixels(source.path, columns_of(source, decoded[source.path].values), value_range, modality)
        for source, value_range, modality in zip(record.images, ranges, MODALITIES, strict=True)
    ]


def columns_of(source: ImageSource, values: Values) -> Values:
    """The columns of a file's values `(h, w, ...)` that belong to one modality."""
    return values if source.columns is None else values[:, source.columns[0] : source.columns[1]]


def orient_sources(images: Iterable[Tensor | None], orientation: int) -> list[Tensor | None]:
    """Rotate or mirror every image, see `trireid.data.orientations.orient`."""
    return [None if image is None else orient(image, orientation) for image in images]


def read_strip(path: Path, width: int | None) -> DecodedImage:
    """Decode a file and check its width (None: any width)."""
    image = read_image(path)
    if width is not None and image.values.shape[1] != width:
        raise ImageError(f"{path}: a strip must be {width} pixels wide, this one has {image.values.shape[1]}; {REPAIR}")
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


@dataclass(frozen=True)
class Verified:
    """Result of decoding every file: a fault for each unreadable one, and the facts of all others by path."""

    faults: list[Fault]
    facts: dict[Path, ImageFacts]


def verify_images(records: Iterable[Record], *, workers: int = 4, progress: Progress | None = None) -> Verified:
    """Decode every file of the records once, in the order of the paths."""
    files = sorted(_strip_widths(records).items())

    def check(file: tuple[Path, int | None]) -> Fault | ImageFacts:
        try:
            return read_strip(*file).facts
        except ImageError as error:
            return Fault(UNREADABLE_IMAGE, file[0], str(error))

    verified = Verified([], {})
    with quiet_decoders(), ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for done, (file, found) in enumerate(zip(files, pool.map(check, files), strict=True), start=1):
            if isinstance(found, Fault):
                verified.faults.append(found)
            else:
                verified.facts[file[0]] = found
            if progress is not None:
                progress(done, len(files))
    return verified
