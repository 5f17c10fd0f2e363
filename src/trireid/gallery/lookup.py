"""Items by key, where all of them must be there, and what is done to them."""

from __future__ import annotations

from collections.abc import Iterable

from trireid.errors import InputError, printable
from trireid.gallery.engine import Engine
from trireid.gallery.filters import Filter, expression
from trireid.gallery.rows import Row, checked_text


def existing(engine: Engine, keys: str | Iterable[str], *, width: int | None = None) -> dict[str, Row]:
    """The rows of items in the given order, each once.

    Args:
        engine: of the gallery.
        keys: of the items.
        width: of a row, to read the vectors as well.

    Raises:
        InputError: one is not there, or there are none.
    """
    names = list(dict.fromkeys([keys] if isinstance(keys, str) else keys))
    if not names:
        raise InputError("there are no keys; give at least one")
    for name in names:
        checked_text(name, "key", printable(repr(name), limit=80))
    rows = engine.fetch(names, width=width)
    missing = [name for name in names if name not in rows]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        shown = printable(repr(missing[0]), limit=80)
        raise InputError(f"there is no item {shown}{more} in the gallery; `trireid gallery list` shows its keys")
    return {name: rows[name] for name in names}


def removable(engine: Engine, where: Filter) -> list[str]:
    """The keys of the items that a filter removes.

    Raises:
        InputError: the filter is empty, which would remove all, or one of its keys is not there.
    """
    text = expression(where)
    if not text:
        raise InputError("an empty filter would remove all items; name keys, identities, cameras or times")
    if where.keys is not None:
        existing(engine, where.keys)
    return [row["key"] for page in engine.scan(text) for row in page]


def checked_label(identity: str | None) -> str:
    """An identity that items can be given.

    Raises:
        InputError: it is no text, empty, or cannot be stored.
    """
    if identity is None or identity == "":
        raise InputError("the identity is empty: give a text, or take the identity of items away with unlabel")
    return checked_text(identity, "identity", "to label")
