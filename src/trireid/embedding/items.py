"""What is embedded: an object seen at one moment in up to three spectra, with what is known about it. No torch."""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from numbers import Real
from typing import Any

import numpy as np

from trireid.errors import InputError, printable
from trireid.names import MODALITIES

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the full frame; right and bottom are one past the last pixel."""

TEXTS = ("key", "identity", "camera", "scene")
MAX_BYTES = {"key": 512, "identity": 256, "camera": 256, "scene": 256, "details": 60_000}
"""Of the texts of an item in UTF-8, and of its paths, box, quality and metadata together as JSON: a gallery stores no
more, so that more is refused before it is embedded."""
MAX_METADATA = 40_000
"""Of `details`, bytes of the metadata as JSON; the rest is for paths and boxes."""
LARGEST_TIME = 7_258_118_400.0
"""The year 2200; numbers beyond, or as far before 1970, are no seconds."""


@dataclass(frozen=True, slots=True)
class Item:
    """One object at one moment: its images by modality, and what is known about it.

    Attributes:
        images: by modality name (`rgb`, `nir`, `tir`), any non-empty subset: the path of a file, a numpy array
            `(h, w)` or `(h, w, 3)`, a PIL image, or a tensor `(3, h, w)` or `(1, h, w)`; None is an image that there
            is not, and a fourth channel (transparency) is not used. An item that comes back from an embedding keeps
            only its paths.
        key: unique text by which a gallery knows the item; None: its number in the call.
        identity: which object it is; None where not known.
        camera: None where not known.
        scene: None where not known.
        time: seconds since 1970-01-01 UTC; None where not known.
        box: where the object is in the full frame, for all modalities or by modality; None: the whole image.
        quality: weight above 0 of this item where several become one, see `aggregate`; None: 1.
        metadata: any further facts, as JSON.

    Raises:
        InputError: a modality has another name, a text is empty, too long or no text, a number is not finite, the time
            is beyond the year 2200, a box has no area, or the metadata is no JSON object or too long.

    Example:
        >>> Item({"rgb": "rgb/17.jpg", "tir": "tir/17.jpg"}, key="17", camera="2").camera
        '2'
        >>> Item({"red": "17.jpg"})
        Traceback (most recent call last):
        ...
        trireid.errors.InputError: an item has an image of 'red': the modalities are rgb, nir and tir
    """

    images: Mapping[str, Any]
    key: str | None = None
    identity: str | None = None
    camera: str | None = None
    scene: str | None = None
    time: float | None = None
    box: Box | Mapping[str, Box] | None = None
    quality: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in TEXTS:
            _check_text(name, getattr(self, name), self)
        if not isinstance(self.images, Mapping):
            raise InputError(f"{self.name} has images of type {type(self.images).__name__}: give {{modality: image}}")
        _check_modalities(self.images, self, "an image")
        if any(image is None for image in self.images.values()):
            given = {name: image for name, image in self.images.items() if image is not None}
            object.__setattr__(self, "images", given)
        for name in ("time", "quality"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not _finite(value)):
                raise InputError(f"the {name} of {self.name} is {_shown(value)}: give a finite number, or None")
        if self.time is not None and abs(self.time) > LARGEST_TIME:
            raise InputError(
                f"the time of {self.name} is {_shown(self.time)} seconds since 1970, beyond the year 2200: give "
                "seconds (milliseconds divided by 1000), or None"
            )
        if self.quality is not None and not self.quality > 0:
            raise InputError(f"the quality of {self.name} is {self.quality:g}: give a number above 0, or None for 1")
        if self.box is not None:
            object.__setattr__(self, "box", _plain_box(self.box))
            _check_boxes(self.box, self)
        if self.metadata or not isinstance(self.metadata, Mapping):
            _check_metadata(self.metadata, self)

    @property
    def name(self) -> str:
        """What messages call it."""
        return "an item" if not isinstance(self.key, str) else f"the item '{printable(self.key, limit=80)}'"

    def box_of(self, modality: str) -> Box | None:
        """Where the object is in the image of a modality; None: the whole image."""
        return self.box.get(modality) if isinstance(self.box, Mapping) else self.box

    def without_pixels(self, key: str) -> Item:
        """The same item with a key, and with those of its images alone that are files, as absolute paths."""
        paths = {name: image for name, image in self.images.items() if isinstance(image, str | os.PathLike)}
        return replace(self, key=key, images={name: os.path.abspath(path) for name, path in paths.items()})  # noqa: PTH100 - keeps links and `str`


def as_items(items: Iterable[Item | Mapping[str, Any]]) -> Iterable[Item]:
    """Items one by one; a mapping of images by modality is an item about which nothing else is known.

    Raises:
        InputError: something else was given.
    """
    if isinstance(items, Item | Mapping | str):
        raise InputError(f"items is a single {type(items).__name__}: give a list of them, such as [item]")
    for number, item in enumerate(items):
        if isinstance(item, Item):
            yield item
        elif isinstance(item, Mapping):
            yield Item(item)
        else:
            raise InputError(
                f"item {number} is a {type(item).__name__}: give trireid.Item, or images by modality such as "
                "{'rgb': path}"
            )


def seconds_of(text: str) -> float:
    """Seconds since 1970-01-01 UTC of a number or of a date in ISO 8601; without a zone it is UTC.

    Raises:
        InputError: it is neither, or a number that is a date (`20240101`) or beyond the year 2200.

    Example:
        >>> seconds_of("1970-01-01T01:00:00+01:00"), seconds_of("12.5")
        (0.0, 12.5)
    """
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            seconds = math.nan
        else:
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise InputError(
            f"the time '{printable(text, limit=60)}' is neither a number of seconds since 1970 nor a date such as "
            "2026-11-26T13:30:00+00:00"
        )
    if _DATE.fullmatch(text):
        raise InputError(
            f"the time '{text}' reads as a date, and would be taken as seconds: write {text[:4]}-{text[4:6]}-"
            f"{text[6:]}, or {text}.0 if it is a number of seconds since 1970"
        )
    if abs(seconds) > LARGEST_TIME:
        raise InputError(
            f"the time '{printable(text, limit=60)}' is beyond the year 2200 as seconds since 1970: divide "
            "milliseconds by 1000, or write a date such as 2026-11-26T13:30:00+00:00"
        )
    return seconds


_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
"""A day without separators, which is a number as well."""


def _check_text(name: str, value: Any, item: Item) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        owner = "an item" if name == "key" else item.name
        raise InputError(
            f"the {name} of {owner} is {_shown(value)}, of type {type(value).__name__}: give text, such as "
            f"'{_shown(value)}', or None"
        )
    if not value:
        raise InputError(f"the {name} of {item.name} is empty: give text, or None where it is not known")
    if not value.isprintable() and any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in value):
        raise InputError(f"the {name} '{printable(value, limit=80)}' holds a character that cannot be printed")
    size = len(value.encode(errors="surrogatepass"))
    if size > MAX_BYTES[name]:
        raise InputError(
            f"the {name} '{printable(value, limit=60)}' has {size} bytes, at most {MAX_BYTES[name]} are "
            "stored: shorten it"
        )


def _check_modalities(named: Iterable[Any], item: Item, what: str) -> None:
    for name in named:
        if name not in MODALITIES:
            raise InputError(f"{item.name} has {what} of '{_shown(name)}': the modalities are rgb, nir and tir")


def _plain_box(given: Any) -> Any:
    """Boxes that are numpy arrays or other rows of numbers, as tuples; what is none stays as it is."""
    if isinstance(given, Mapping):
        return {name: _plain_box(box) for name, box in given.items()}
    listed = given.tolist() if isinstance(given, np.ndarray) else given
    return tuple(listed) if isinstance(listed, list) else listed


def _check_boxes(given: Any, item: Item) -> None:
    if isinstance(given, Mapping):
        _check_modalities(given, item, "a box")
    for box in given.values() if isinstance(given, Mapping) else [given]:
        numbers = box if isinstance(box, tuple | list) else ()
        good = len(numbers) == 4 and all(isinstance(number, Real) and _finite(number) for number in numbers)
        if not good or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
            raise InputError(
                f"the box of {item.name} is {_shown(box)}: give (left, top, right, bottom) in pixels, with left < "
                "right and top < bottom"
            )


def _check_metadata(metadata: Any, item: Item) -> None:
    try:
        text = metadata_text(metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the metadata of {item.name} is no JSON object ({printable(str(error), limit=120)}): give a dict of "
            "texts, finite numbers, truth values, lists and dicts"
        ) from error
    if len(text) > MAX_METADATA:
        raise InputError(
            f"the metadata of {item.name} has {len(text)} bytes as JSON; at most {MAX_METADATA} are stored: keep "
            "large data elsewhere, and its place here"
        )


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Metadata as JSON on one line; numbers that are not finite and names that are no text are refused."""
    if not isinstance(metadata, Mapping) or any(not isinstance(name, str) for name in metadata):
        raise TypeError("its names must be text")
    return json.dumps(dict(metadata), allow_nan=False)


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _shown(value: Any) -> str:
    return printable(str(value), limit=60)
