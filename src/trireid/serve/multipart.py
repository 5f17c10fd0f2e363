"""Forms of several parts (RFC 7578), parsed in memory: nothing of a request is written to a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from trireid.serve.problems import Problem

_HEADERS = 16
"""Of one part at most."""


@dataclass(frozen=True)
class Part:
    """One part of a form.

    Attributes:
        name: of its field.
        file_name: that the client gave; text and nothing else. None for a field without a file.
        content: its bytes.
    """

    name: str
    file_name: str | None
    content: bytes


class _Collector:
    """Takes what the parser finds."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.parts: list[Part] = []
        self._begin()

    def _begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value, self._content = bytearray(), bytearray(), bytearray()

    def begin(self) -> None:
        """A part starts."""
        if len(self.parts) >= self.most:
            raise Problem(413, f"the form has more than the {self.most} parts that are allowed; send fewer at once")
        self._begin()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        """A piece of the name of a header."""
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of its value."""
        self._value += data[start:end]

    def header_end(self) -> None:
        """A header is complete."""
        if len(self._headers) >= _HEADERS:
            raise Problem(400, f"a part of the form has more than {_HEADERS} headers")
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def content(self, data: bytes, start: int, end: int) -> None:
        """A piece of the content."""
        self._content += data[start:end]

    def end(self) -> None:
        """The part is complete."""
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise Problem(400, "a part of the form has no name; each needs Content-Disposition: form-data; name=...")
        file_name = options.get(b"filename")
        self.parts.append(
            Part(_text(options[b"name"]), None if file_name is None else _text(file_name), bytes(self._content))
        )


def parse_form(body: bytes, content_type: str, *, most: int) -> list[Part]:
    """The parts of a form.

    Args:
        body: of the request.
        content_type: its header, with the boundary.
        most: parts that are allowed.

    Raises:
        Problem: 400 where it is no form or is cut short, 413 where it has too many parts.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise Problem(400, "Content-Type: multipart/form-data names no boundary")
    found = _Collector(most)
    ended = [False]
    callbacks: Any = {
        "on_part_begin": found.begin,
        "on_part_data": found.content,
        "on_part_end": found.end,
        "on_header_field": found.header_name,
        "on_header_value": found.header_value,
        "on_header_end": found.header_end,
        "on_end": lambda: ended.__setitem__(0, True),
    }
    try:
        parser = MultipartParser(boundary, callbacks)  # which refuses a long boundary
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, f"the form is damaged: {error}") from error
    if not ended[0]:
        raise Problem(400, "the form is cut short: its last boundary is missing")
    return found.parts


def _text(value: bytes) -> str:
    """A name as text; browsers send UTF-8."""
    return value.decode("utf-8", errors="replace")
