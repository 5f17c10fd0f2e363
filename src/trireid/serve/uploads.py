"""From the body of a request to checked fields and decoded images."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import ValidationError

from trireid.data.formats import DecodeError, Values, decode, size_of
from trireid.errors import printable
from trireid.names import MODALITIES, ModalityName
from trireid.serve.limits import Limits
from trireid.serve.multipart import parse_form
from trireid.serve.problems import Problem, invalid
from trireid.serve.schemas import WithItems

Fields = TypeVar("Fields", bound=WithItems)
FIELDS_PART = "request"
"""The part of a form that holds all fields but the images, as JSON."""
_IMAGE_PART = re.compile(rf"(?:(\d{{1,6}})\.)?({'|'.join(MODALITIES)})")


@dataclass(frozen=True)
class Upload:
    """The encoded image of one modality.

    Attributes:
        content: the bytes of the file.
        file_name: that the client gave, text and nothing else; None in JSON.
        place: of it in the request, for messages.
    """

    content: bytes
    file_name: str | None
    place: str


@dataclass(frozen=True)
class Uploads(Generic[Fields]):
    """A request: its checked fields, and the images of each of its items by modality."""

    fields: Fields
    images: tuple[Mapping[str, Upload], ...]

    @property
    def file_names(self) -> list[dict[str, str]]:
        """Of each item, by modality, where the client gave them."""
        return [{name: each.file_name for name, each in item.items() if each.file_name} for item in self.images]


def read_uploads(body: bytes, content_type: str, kind: type[Fields], *, limits: Limits) -> Uploads[Fields]:
    """Read JSON with images in base64, or a form with a file for each image and the rest in its part `request`.

    Raises:
        Problem: 400, 413, 415 or 422.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/json":
        fields = _fields(body, kind, limits)
        images = tuple(_from_base64(number, item.images) for number, item in enumerate(fields.items))
    elif media_type == "multipart/form-data":
        fields, images = _from_form(body, content_type, kind, limits)
    else:
        raise Problem(
            415,
            f"the body is '{printable(media_type, limit=80)}'; send application/json with images in base64, or "
            "multipart/form-data with a file for each image",
            headers={"Accept": "application/json, multipart/form-data"},
        )
    if len(images) > limits.items:
        raise Problem(413, f"the request has {len(images)} items; at most {limits.items} are taken at once")
    return Uploads(fields, images)


def _fields(content: bytes, kind: type[Fields], limits: Limits) -> Fields:
    # Counted before it is read: of each value, one of these letters is there, and images in base64 have none of them.
    if sum(map(content.count, (b",", b"[", b"{"))) > limits.json_values:
        raise Problem(
            413,
            f"the JSON has more than the {limits.json_values} values that are taken; send fewer items or keys at once",
        )
    try:
        return kind.model_validate_json(content or b"{}")
    except ValidationError as error:
        raise invalid(error) from error


def _from_base64(number: int, images: Mapping[ModalityName, str]) -> dict[str, Upload]:
    found: dict[str, Upload] = {}
    for name, text in images.items():
        place = f"items.{number}.images.{name}"
        try:
            found[name] = Upload(base64.b64decode(text, validate=True), None, place)
        except (binascii.Error, ValueError) as error:
            raise Problem(422, f"{place}: it is not base64 (RFC 4648, without line ends)") from error
    return found


def _from_form(
    body: bytes, content_type: str, kind: type[Fields], limits: Limits
) -> tuple[Fields, tuple[dict[str, Upload], ...]]:
    parts = parse_form(body, content_type, most=limits.items * len(MODALITIES) + 1)
    fields = b""
    images: dict[int, dict[str, Upload]] = {}
    for part in parts:
        if part.name == FIELDS_PART:
            fields = part.content
            continue
        match = _IMAGE_PART.fullmatch(part.name)
        if match is None:
            raise Problem(
                422,
                f"the form has a part '{printable(part.name, limit=60)}'; images are rgb, nir and tir, of several "
                f"items 0.rgb, 1.rgb, ..., and all else is JSON in the part '{FIELDS_PART}'",
            )
        number = int(match[1] or 0)
        if number >= limits.items:
            raise Problem(413, f"the form has an item {number}; at most {limits.items} are taken at once, from 0 on")
        item = images.setdefault(number, {})
        if match[2] in item:
            raise Problem(422, f"the form has two images '{part.name}'; an item has one of each modality")
        item[match[2]] = Upload(part.content, part.file_name, part.name)
    count = 1 + max(images, default=-1)
    checked = _fields(fields, kind, limits).with_items(count)
    if any(item.images for item in checked.items):
        raise Problem(422, f"the part '{FIELDS_PART}' of a form has images; send them as files of their own")
    return checked, tuple(images.get(number, {}) for number in range(len(checked.items)))


def count_pixels(uploads: Uploads[Fields], limits: Limits) -> int:
    """The pixels of all images, by their headers.

    Raises:
        Problem: 413 where an image, or all of them, have more than is decoded; 422 where an item has no image.
    """
    whole = 0
    for number, item in enumerate(uploads.images):
        if not item:
            raise Problem(422, f"items.{number}: it has no image; give at least one of {', '.join(MODALITIES)}")
        for upload in item.values():
            height, width = size_of(upload.content) or (1, limits.image_pixels)
            if height * width > limits.image_pixels:
                raise Problem(
                    413,
                    f"{upload.place}: its header says {height} x {width} pixels; at most {limits.image_pixels} are "
                    "taken. Send it smaller",
                )
            whole += height * width
    if whole > limits.decoded_pixels:
        raise Problem(413, f"all images have {whole} pixels; at most {limits.decoded_pixels} are taken at once")
    return whole


def decode_upload(upload: Upload, limits: Limits) -> Values:
    """The values of an image `(h, w)` or `(h, w, 3)`, in the depth of its file.

    Raises:
        Problem: 422 where it cannot be decoded.
    """
    try:
        return decode(upload.content, max_pixels=limits.image_pixels).values
    except DecodeError as error:
        raise Problem(422, f"{upload.place}: {error}") from error
