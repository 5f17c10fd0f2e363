"""What is embedded: an object seen at one moment in up to three spectra, with what is known about it. No torch."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from numbers import Real
from typing import Any

from trireid.errors import InputError, printable
from trireid.names import MODALITIES

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the full frame; right and bottom are one past the last pixel."""

TEXTS = ("key", "identity", "camera", "scene")
MAX_METADATA = 100_000
"""Characters of the metadata of one item, as JSON."""


@dataclass(frozen=True, slots=True)
class Item:
    """One object at one moment: its images by modality, and what is known about it.

    Attributes:
        images: by modality name (`rgb`, `nir`, `tir`), any non-empty subset: the path of a file, a numpy array
            `(h, w)` or `(h, w, 3)`, a PIL image, or a tensor `(3, h, w)` or `(1, h, w)`. An item that comes back from
            an embedding keeps only its paths.
        key: unique text by which a gallery knows the item; None: its number in the call.
        identity: which object it is; None where not known.
        camera: None where not known.
        scene: None where not known.
        time: seconds since 1970-01-01 UTC; None where not known.
        box: where the object is in the full frame, for all modalities or by modality; None: the whole image.
        quality: weight above 0 of this item where several become one, see `aggregate`; None: 1.
        metadata: any further facts, as JSON.

    Raises:
        InputError: a modality has another name, a text is empty or no text, a number is not finite, a box has no area,
            or the metadata is no JSON object.

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
        for name in ("time", "quality"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not _finite(value)):
                raise InputError(f"the {name} of {self.name} is {_shown(value)}: give a finite number, or None")
        if self.quality is not None and not self.quality > 0:
            raise InputError(f"the quality of {self.name} is {self.quality:g}: give a number above 0, or None for 1")
        if self.box is not None:
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
        InputError: it is neither.

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
    return seconds


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


def _check_modalities(named: Iterable[Any], item: Item, what: str) -> None:
    for name in named:
        if name not in MODALITIES:
            raise InputError(f"{item.name} has {what} of '{_shown(name)}': the modalities are rgb, nir and tir")


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
            f"the metadata of {item.name} has {len(text)} characters as JSON; at most {MAX_METADATA} are kept: store "
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
