"""Which items of a gallery are meant, and the same as an expression of the engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from trireid.errors import InputError, printable
from trireid.gallery.layout import CODES
from trireid.names import MODALITIES

NO_TIME = -1e18
"""Stored where the time is not known."""
LARGEST_TIME = 1e15
"""Seconds, either way."""


@dataclass(frozen=True)
class Filter:
    """Items that fulfil all given conditions; None: no condition.

    Attributes:
        cameras: of one of these cameras.
        not_cameras: of none of these; items whose camera is not known stay.
        scenes: of one of these scenes.
        identities: of one of these identities.
        keys: one of these items.
        presence: exactly these modalities, one text or several: `"rgb"`, `"rgb,nir"`.
        after: seconds since 1970-01-01 UTC, this moment or later; items without a time are left out.
        before: earlier than this moment; items without a time are left out.

    Example:
        >>> expression(Filter(cameras=["gate", "yard"], after=0))
        '(camera in ["gate", "yard"]) and (time >= 0.0) and (time > -2000000000000000.0)'
    """

    cameras: Sequence[str] | None = None
    not_cameras: Sequence[str] | None = None
    scenes: Sequence[str] | None = None
    identities: Sequence[str] | None = None
    keys: Sequence[str] | None = None
    presence: str | Sequence[str] | None = None
    after: float | None = None
    before: float | None = None

    @property
    def is_empty(self) -> bool:
        """True where it has no condition."""
        return all(getattr(self, each.name) is None for each in fields(self))


def expression(where: Filter | None) -> str:
    """A filter as an expression; empty: all items.

    Raises:
        InputError: a condition is of another type, or names no modality or time.
    """
    if where is None:
        return ""
    if not isinstance(where, Filter):
        raise InputError(f"a filter must be a trireid.Filter, given {printable(repr(where), limit=80)}")
    parts = [
        _among("camera", where.cameras, "cameras"),
        _not_among("camera", where.not_cameras, "not_cameras"),
        _among("scene", where.scenes, "scenes"),
        _among("identity", where.identities, "identities"),
        _among("key", where.keys, "keys"),
        _presence(where.presence),
        *_times(where.after, where.before),
    ]
    return both(*parts)


def both(*parts: str) -> str:
    """All of several expressions; empty ones are left out."""
    return " and ".join(f"({part})" for part in parts if part)


def among(name: str, values: Iterable[str]) -> str:
    """The items whose field is one of some texts."""
    listed = ", ".join(literal(value) for value in values)
    return f"{name} in [{listed}]"


def presence_in(codes: Iterable[int]) -> str:
    """The items of some presences."""
    return f"presence in [{', '.join(str(code) for code in codes)}]"


def literal(text: str) -> str:
    """A text in quotes. Control characters are refused before, so nothing else can end it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _texts(values: Sequence[str], name: str) -> list[str]:
    given = [values] if isinstance(values, str) else list(values)
    for value in given:
        if not isinstance(value, str) or not value or any(ord(each) < 32 for each in value):
            raise InputError(
                f"the filter {name} must list texts without control characters, given {printable(repr(value))}"
            )
    if not given:
        raise InputError(f"the filter {name} is an empty list, which no item fulfils; leave it out for all items")
    return given


def _among(name: str, values: Sequence[str] | None, argument: str) -> str:
    return "" if values is None else among(name, _texts(values, argument))


def _not_among(name: str, values: Sequence[str] | None, argument: str) -> str:
    return "" if values is None else f"not ({among(name, _texts(values, argument))})"


def parse_presence(text: str) -> int:
    """The number of modalities given as `rgb,nir`.

    Raises:
        InputError: one is no modality.
    """
    names = [each.strip() for each in text.split(",")]
    if not set(names) <= set(MODALITIES):
        raise InputError(
            f"the presence {printable(text, limit=60)!r} must list some of {', '.join(MODALITIES)}, such as rgb,nir"
        )
    return sum(1 << MODALITIES.index(name) for name in set(names))


def _presence(given: str | Sequence[str] | None) -> str:
    if given is None:
        return ""
    codes = {parse_presence(text) for text in _texts([given] if isinstance(given, str) else given, "presence")}
    return presence_in(code for code in CODES if code in codes)


def _times(after: float | None, before: float | None) -> list[str]:
    parts = []
    for value, name, sign in ((after, "after", ">="), (before, "before", "<")):
        if value is None:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > LARGEST_TIME:
            raise InputError(f"the filter {name} must be seconds since 1970-01-01 UTC, given {printable(repr(value))}")
        parts.append(f"time {sign} {float(value)!r}")
    if parts:
        parts.append(f"time > {-2 * LARGEST_TIME!r}")
    return parts
