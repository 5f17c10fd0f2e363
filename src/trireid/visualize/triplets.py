"""One triplet as one picture: the three spectra on top of each other, absent ones as hatched boxes."""

from __future__ import annotations

from PIL import Image, ImageDraw, features

from trireid.data.images import columns_of
from trireid.data.ranges import to_8_bits
from trireid.data.reading import read_image
from trireid.data.records import ImageSource, Record
from trireid.errors import DataError

BACKGROUND = (238, 238, 238)
INK = (110, 110, 110)
GAP = 2
"""Pixels between two spectra."""


def triplet_image(record: Record, *, size: tuple[int, int]) -> Image.Image:
    """The spectra of a record from top to bottom in the order of `MODALITIES`.

    Args:
        record: its images are read here; one that is absent becomes a hatched box, one that cannot be read a crossed
            box, so that a page of a moved data set says so in its place.
        size: (height, width) of each spectrum in pixels.

    Returns:
        RGB picture, `M * height + (M - 1) * GAP` pixels high.
    """
    height, width = size
    num_spectra = len(record.images)
    picture = Image.new("RGB", (width, num_spectra * (height + GAP) - GAP), "white")
    for row, source in enumerate(record.images):
        picture.paste(spectrum_image(source, size), (0, row * (height + GAP)))
    return picture


def shown_size(record: Record, *, longest: int) -> tuple[int, int]:
    """(height, width) with the shape of the record's first readable image and the longer side given.

    Very long shapes are held to 3 : 1; without any readable image it is a square.
    """
    for source in record.images:
        image = None if source is None else read_source(source)
        if image is not None:
            ratio = min(max(image.width / image.height, 1 / 3), 3.0)
            return (longest, round(longest * ratio)) if ratio < 1 else (round(longest / ratio), longest)
    return longest, longest


def read_source(source: ImageSource) -> Image.Image | None:
    """The pixels of one spectrum, or None where they cannot be read."""
    try:
        values = columns_of(source, read_image(source.path).values)
    except DataError:
        return None
    # What has more than 8 bits is shown by its own range, so that every picture can be seen.
    return Image.fromarray(to_8_bits(values, "file")).convert("RGB")


def spectrum_image(source: ImageSource | None, size: tuple[int, int]) -> Image.Image:
    """One spectrum as RGB at a (height, width), or the box that stands for it: hatched if absent, crossed if unread."""
    height, width = size
    if source is None:
        return _hatched_box(size)
    image = read_source(source)
    if image is None:
        return _crossed_box(size)
    # Small pixels stay visible as pixels; large images are averaged down.
    enlarged = image.width < width
    return image.resize((width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _hatched_box(size: tuple[int, int]) -> Image.Image:
    """Stands for a modality that the item does not have."""
    height, width = size
    box = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(box)
    for start in range(-height, width, 8):
        draw.line([(start, height), (start + height, 0)], fill=INK)
    _write_in_box(draw, "absent", size)
    return box


def _crossed_box(size: tuple[int, int]) -> Image.Image:
    """Stands for an image file that cannot be read."""
    height, width = size
    box = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(box)
    draw.line([(0, 0), (width, height)], fill=INK)
    draw.line([(0, height), (width, 0)], fill=INK)
    _write_in_box(draw, "no file", size)
    return box


def _write_in_box(draw: ImageDraw.ImageDraw, text: str, size: tuple[int, int]) -> None:
    """Text in the middle of a box, on a plain ground so that it can be read over lines."""
    if not features.check("freetype2"):  # without it there is only a font that cannot be placed; the lines say enough
        return
    middle = (size[1] / 2, size[0] / 2)
    draw.rectangle(draw.textbbox(middle, text, anchor="mm"), fill=BACKGROUND)
    draw.text(middle, text, fill=(60, 60, 60), anchor="mm")
