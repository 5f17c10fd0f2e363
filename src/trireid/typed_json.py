"""JSON files read into types: what a file holds is checked where it is read, and each fault of it is one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from trireid.files import read_text

Content = TypeVar("Content")

JsonObject = dict[str, Any]
"""A JSON object whose entries are not known here."""

MAX_DEPTH = 32
"""Containers within each other; what is written has fewer than ten. Readers may go through them by recursion."""
LARGEST = 1e100
"""Numbers beyond it are faults: they cannot be drawn, and no measurement gives them."""


class Document(BaseModel):
    """Base of what is read from a JSON file.

    Types are strict ("5" is no number). Entries that are not known are kept, so that files of newer versions are read.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
Share = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=0, le=10**15)]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("Input should be a text")
    return value


Text = Annotated[str, PlainValidator(_text)]
"""Any text. pydantic's own type refuses names of files that are not UTF-8, which Python holds as lone surrogates."""


def parse_json(text: str) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: it is no JSON, or nested more than `MAX_DEPTH` deep; one line.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    layer, depth = [content], 0
    while layer := [inner for outer in layer if isinstance(outer, dict | list) for inner in _inner(outer)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return content


def parse_object(text: str) -> JsonObject:
    """The content of a JSON text that must be an object; errors as `parse_json`."""
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError(f"it holds {shortened(content)} where an object should be")
    return content


def read_object(path: Path) -> JsonObject:
    """The JSON object of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, OSError: it cannot be read, or it is no JSON object; one line.
    """
    return parse_object(read_text(path))


def checked(kind: TypeAdapter[Content], content: Any) -> Content:
    """A content as its type.

    Raises:
        ValueError: it is something else; one line.
    """
    try:
        return kind.validate_python(content)
    except ValidationError as error:
        raise ValueError(describe_fault(error)) from None


def without_faults(kind: TypeAdapter[Content], content: Mapping[str, Any]) -> tuple[Content, list[str]]:
    """What can be used of a damaged object: its faulty entries are left out, with a line on each.

    Args:
        kind: type whose entries all have a default, apart from those without which nothing can be used.
        content: the object.

    Raises:
        ValueError: an entry is missing or faulty that is needed; one line.
    """
    faults: list[str] = []
    kept = dict(content)
    while True:
        try:
            return kind.validate_python(kept), faults
        except ValidationError as error:
            faulty = [each["loc"][0] for each in error.errors(include_url=False) if each["loc"][0] in kept]
            missing = [each for each in error.errors(include_url=False) if each["loc"][0] not in kept]
            if missing or not faulty:
                raise ValueError(faults[-1] if faults else describe_fault(error)) from None
            faults.append(describe_fault(error))
            for name in faulty:
                kept.pop(str(name), None)


def describe_fault(error: ValidationError) -> str:
    """One line: where the first fault is, what is expected and what was found, and how many more there are."""
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    place = shortened(".".join(str(part) for part in first["loc"]))[1:-1]
    message = first["msg"].removeprefix("Value error, ")
    found = "" if first["type"] == "missing" else f", given {shortened(first['input'])}"
    more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
    return f"{place}: {message[:1].lower()}{message[1:]}{found}{more}"


def shortened(value: Any, *, length: int = 60) -> str:
    """A value as one printable line of bounded length."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= length else f"{text[: length - 4]}...{text[-1]}"


def _inner(container: JsonObject | list[Any]) -> Iterator[Any]:
    """The containers within a container."""
    values = container.values() if isinstance(container, dict) else container
    return (value for value in values if isinstance(value, dict | list))
