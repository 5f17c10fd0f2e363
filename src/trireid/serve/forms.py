"""Forms of the pages: read in memory, checked for the token of the page, their fields as texts and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import ValidationError

from trireid.embedding.items import seconds_of
from trireid.errors import printable
from trireid.names import MODALITIES
from trireid.serve.frame import pages_of
from trireid.serve.multipart import parse_form
from trireid.serve.problems import Problem, invalid
from trireid.serve.schemas import ItemFields
from trireid.serve.uploads import Upload

MOST_FIELDS = 100
LONGEST_TEXT = 2000
"""Letters of one field: a search keeps what was written."""


@dataclass(frozen=True)
class Form:
    """What a person sent.

    Attributes:
        texts: values by name; a name can have several.
        images: chosen files by modality.
    """

    texts: Mapping[str, list[str]]
    images: Mapping[str, Upload]

    def text(self, name: str, default: str = "") -> str:
        """The first value of a field, without white space around it."""
        return self.texts.get(name, [default])[0].strip()

    def optional(self, name: str) -> str | None:
        """The first value of a field, None where it is empty."""
        return self.text(name) or None

    def several(self, name: str) -> list[str] | None:
        """All values of a field that are not empty, None where there are none."""
        return [value.strip() for value in self.texts.get(name, []) if value.strip()] or None

    def number(self, name: str) -> float | None:
        """A number, None where the field is empty.

        Raises:
            Problem: it is no number.
        """
        given = self.text(name)
        if not given:
            return None
        try:
            value = float(given)
        except ValueError:
            value = float("nan")
        if not abs(value) < float("inf"):
            raise Problem(422, f"{name}: '{printable(given, limit=40)}' is not a number")
        return value

    def whole(self, name: str, default: int) -> int:
        """A whole number.

        Raises:
            Problem: it is none.
        """
        value = self.number(name)
        if value is None:
            return default
        if value != int(value):
            raise Problem(422, f"{name}: {value:g} is not a whole number")
        return int(value)

    def time(self, name: str) -> float | None:
        """Seconds since 1970 of a date, UTC; None where the field is empty.

        Raises:
            TrireidError: it is no date.
        """
        given = self.text(name)
        return seconds_of(given) if given else None


def item_fields(form: Form, *, prefix: str = "", key: str | None) -> ItemFields:
    """What is known about an item.

    Args:
        form: with the fields `identity`, `camera`, `scene` and `time`.
        prefix: before the names of these fields.
        key: of the item.

    Raises:
        Problem: a text is too long.
    """
    try:
        return ItemFields(
            key=key,
            identity=form.optional(f"{prefix}identity"),
            camera=form.optional(f"{prefix}camera"),
            scene=form.optional(f"{prefix}scene"),
            time=form.time(f"{prefix}time"),
        )
    except ValidationError as error:
        raise invalid(error) from error


async def read_form(request: Request) -> Form:
    """Read a form that a page of this service has made.

    Raises:
        Problem: 400 or 413, it is damaged or too large; 403, no page of this service has made it.
    """
    pages = pages_of(request)
    body, kind = await request.body(), request.headers.get("content-type", "")
    texts: dict[str, list[str]] = {}
    images: dict[str, Upload] = {}
    if kind.startswith("multipart/form-data"):
        for part in await pages.service.decode(partial(parse_form, body, kind, most=MOST_FIELDS)):
            if part.file_name is None:
                texts.setdefault(part.name, []).append(part.content.decode("utf-8", "replace"))
            elif part.content and part.name in MODALITIES:  # without a chosen file, browsers send an empty one
                if part.name in images:
                    raise Problem(422, f"the form has two {part.name} images; choose one of each spectrum")
                images[part.name] = Upload(part.content, part.file_name, part.name)
    else:
        try:
            fields = parse_qsl(body.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError as error:
            raise Problem(400, f"the form has more than {MOST_FIELDS} fields") from error
        for name, value in fields:
            texts.setdefault(name, []).append(value)
    for name, values in texts.items():
        if max(map(len, values)) > LONGEST_TEXT:
            raise Problem(413, f"{printable(name, limit=40)}: it has more than {LONGEST_TEXT} letters; shorten it")
    form = Form(texts, images)
    request.app.state.access.check_form(request.headers, form.text("form"))
    return form


def date_text(seconds: float | None) -> str:
    """A moment for people, UTC; empty where it is not known.

    Example:
        >>> date_text(0.0)
        '1970-01-01 00:00:00'
    """
    if seconds is None:
        return ""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # far outside of what calendars hold
        return f"{seconds:.0f} s"
