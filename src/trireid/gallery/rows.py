"""Items as rows of the engine, and back. Everything is checked before anything is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trireid.embedding.items import MAX_BYTES, Item
from trireid.errors import InputError, printable
from trireid.gallery.filters import LARGEST_TIME, NO_TIME
from trireid.gallery.layout import CODES, Layout, names_of, presence_codes, same_modalities
from trireid.names import MODALITIES

if TYPE_CHECKING:
    from trireid.embedding.embeddings import Embeddings
    from trireid.gallery.engine import Engine

Row = dict[str, Any]
"""The columns of one item; `vector` is left out where it was not requested."""

_ROWS = 4096
LENGTHS = MAX_BYTES
"""Bytes in UTF-8 that a text can have at most."""


def check_vectors(embeddings: Embeddings, layout: Layout) -> None:
    """Raise InputError unless vectors and presence are such that distances between them mean something.

    Raises:
        InputError: no items, other shapes, NaN or infinity, an item without a modality, zeros alone of a modality.
    """
    count = len(embeddings)
    vectors, present = embeddings.vectors, embeddings.present
    if not count:
        raise InputError("there are no items; give at least one")
    if vectors.shape != (count, layout.width) or present.shape != (count, len(MODALITIES)):
        raise InputError(
            f"the vectors are {vectors.shape} and their presence {present.shape}; {count} items of this gallery need "
            f"{(count, layout.width)} and {(count, len(MODALITIES))}"
        )
    if not present.any(axis=1).all():
        raise InputError(f"{_some(embeddings, ~present.any(axis=1))} no modality; give at least one image of each item")
    alike = same_modalities(layout.blocks)
    filled = {code: [row for row, blocks in enumerate(alike) if blocks[0] in layout.filled(code)] for code in CODES}
    codes = presence_codes(present)
    for start in range(0, count, _ROWS):  # vectors of a file are read part by part
        part = slice(start, start + _ROWS)
        largest = np.abs(vectors[part]).reshape(-1, len(layout.blocks), layout.block_width).max(axis=2)
        bad = np.zeros(count, dtype=bool)
        bad[part] = ~np.isfinite(largest).all(axis=1)
        if bad.any():
            raise InputError(f"{_some(embeddings, bad)} NaN or infinite numbers in the vector; embed the images again")
        # Of the slots of a modality some may be 0, as that of a cell without kept patches is.
        seen = np.stack([largest[:, blocks].max(axis=1) for blocks in alike], axis=1)
        for code in np.unique(codes[part]):
            bad[part] = (codes[part] == code) & (seen[:, filled[int(code)]] == 0.0).any(axis=1)
            if bad.any():
                raise InputError(f"{_some(embeddings, bad)} only zeros in the blocks of a modality that is present")


def _some(embeddings: Embeddings, bad: Any) -> str:
    first = int(np.flatnonzero(bad)[0])
    name = printable(repr(embeddings.items[first].key), limit=80)
    return f"item {name} (row {first})" + (f" and {int(bad.sum()) - 1} more have" if bad.sum() > 1 else " has")


def rows_of(embeddings: Embeddings, layout: Layout, root: Path | None) -> list[Row]:
    """All items as rows, without vectors.

    Raises:
        InputError: a field is of another type or too long, a key is missing or there twice.
    """
    check_vectors(embeddings, layout)
    codes = presence_codes(np.asarray(embeddings.present))
    rows = [row_of(item, int(code), root) for item, code in zip(embeddings.items, codes, strict=True)]
    seen: set[str] = set()
    for row in rows:
        if row["key"] in seen:
            raise InputError(
                f"the key {printable(row['key'], limit=80)!r} is there twice; each item needs a key of its own"
            )
        seen.add(row["key"])
    return rows


def row_of(item: Item, code: int, root: Path | None) -> Row:
    """One item as a row, without its vector."""
    name = printable(repr(item.key), limit=80)
    if item.key is None:
        raise InputError("an item has no key; a gallery needs one for each, such as the name of its file")
    texts = {each: checked_text(getattr(item, each), each, name) for each in ("key", "identity", "camera", "scene")}
    return {**texts, "time": _time(item.time, name), "presence": code, "details": _details(item, root, name)}


def checked_text(value: Any, field: str, name: str) -> str:
    """A text that can be stored; None becomes the empty one, which stands for "not known".

    Raises:
        InputError: it is no text, empty, too long, or holds control characters.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"item {name}: {field} must be a text, given {printable(repr(value), limit=60)}; use str()")
    if not value:
        raise InputError(f"item {name}: {field} is an empty text; give None where it is not known")
    if any(ord(each) < 32 or ord(each) == 127 or 0xD800 <= ord(each) <= 0xDFFF for each in value):
        raise InputError(f"item {name}: {field} holds a control character; remove it")
    size = len(value.encode())
    if size > LENGTHS[field]:
        raise InputError(f"item {name}: {field} has {size} bytes, at most {LENGTHS[field]} are allowed; shorten it")
    return value


def _time(value: Any, name: str) -> float:
    if value is None:
        return NO_TIME
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or abs(value) > LARGEST_TIME:
        raise InputError(
            f"item {name}: time must be seconds since 1970-01-01 UTC, given {printable(repr(value), limit=60)}"
        )
    return float(value)


def _details(item: Item, root: Path | None, name: str) -> str:
    images = {each: _relative(path, root) for each, path in item.images.items() if isinstance(path, str | Path)}
    details: dict[str, Any] = {"images": images, "metadata": dict(item.metadata)}
    if item.box is not None:
        details["box"] = dict(item.box) if isinstance(item.box, Mapping) else list(item.box)
    if item.quality is not None:
        details["quality"] = item.quality
    try:
        text = json.dumps(details, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"item {name}: box, quality or metadata is no JSON ({printable(str(error))})") from None
    if len(text) > LENGTHS["details"]:
        raise InputError(
            f"item {name}: paths and metadata have {len(text)} bytes as JSON, at most {LENGTHS['details']} are allowed"
        )
    return text


def _relative(path: str | Path, root: Path | None) -> str:
    given = Path(path)
    if root is None:
        return str(given.absolute())
    whole = given.absolute()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)


def item_of(row: Row, root: Path | None) -> Item:
    """The item of a row; its images are paths."""
    details = json.loads(row["details"])
    box = details.get("box")
    return Item(
        images={name: path if root is None else str(root / path) for name, path in details["images"].items()},
        key=row["key"],
        identity=row["identity"] or None,
        camera=row["camera"] or None,
        scene=row["scene"] or None,
        time=None if row["time"] <= -2 * LARGEST_TIME else float(row["time"]),
        box={name: tuple(each) for name, each in box.items()} if isinstance(box, dict) else box and tuple(box),
        quality=details.get("quality"),
        metadata=details["metadata"],
    )


def modalities_of(row: Row) -> tuple[str, ...]:
    """What an item was embedded from."""
    return names_of(int(row["presence"]))


def write_rows(
    engine: Engine,
    layout: Layout,
    rows: Sequence[Row],
    vectors: NDArray[np.float32],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write rows with the vectors `(n, D)` of their items, and make them safe against the end of this process."""
    step = engine.page_size(layout.row_width)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        codes = np.array([row["presence"] for row in some])
        engine.upsert(some, layout.rows_by_code(vectors[start : start + step], codes), flush=False)
        if progress is not None:
            progress(start + len(some), len(rows))
    engine.flush()
