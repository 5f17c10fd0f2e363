"""Items from a CSV file: paths of images by modality, and what is known about each item."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trireid.data.csv_table import Table, TableError, read_open_table
from trireid.data.spelling import is_empty_word, is_junk
from trireid.embedding.embedding_files import MAX_TABLE
from trireid.embedding.items import Box, Item, seconds_of
from trireid.errors import DataError, InputError, printable
from trireid.names import MODALITIES

SIDES = ("left", "top", "right", "bottom")
BOX_COLUMNS = tuple(f"{start}{side}" for start in ("", *(f"{name}_" for name in MODALITIES)) for side in SIDES)
TEXT_COLUMNS = {"key": "key", "id": "identity", "identity": "identity", "camera": "camera", "scene": "scene"}
KNOWN = (*MODALITIES, *TEXT_COLUMNS, "time", "quality", "box", "metadata", *BOX_COLUMNS)
"""Columns with a meaning; all others become metadata."""


@dataclass(frozen=True)
class ItemList:
    """Items to be embedded, and what was read in an unusual way, one line each."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()


def read_item_table(path: Path) -> ItemList:
    """Items of a CSV file with the columns `rgb`, `nir`, `tir` (at least one of them) and any of `KNOWN`.

    Paths are relative to the folder of the file; an empty cell is an image or fact that there is not. Other columns
    become metadata. Items without a key are named by the path of their first image.

    Raises:
        DataError: the file or a row cannot be read; the message names the line.
    """
    try:
        table = read_open_table(path, KNOWN, limit=MAX_TABLE)
        if not {*table.header} & {*MODALITIES}:
            raise TableError("the header has none of the columns rgb, nir and tir; name the columns of the paths so")
        if {"id", "identity"} <= {*table.header}:
            raise TableError("the header has the columns id and identity, which mean the same; keep one of them")
        items = [(line, item) for line, item in _items(path.parent, table)]
    except TableError as error:
        raise DataError(f"{path}: {error}") from error
    if not items:
        raise DataError(f"{path}: it has a header, but no row; give at least one item")
    notes = [*table.notes, *_notes(table)]
    if len({item.key for _, item in items}) < len(items) and "key" not in table.header:
        # Several objects of one frame, for example.
        items = [(line, replace(item, key=f"{item.key}:{line}")) for line, item in items]
        notes.append("images occur more than once, and there is no column key: keys end in the number of the line")
    repeated = next((key for key, count in Counter(item.key for _, item in items).items() if count > 1), None)
    if repeated is not None:
        lines = ", ".join(str(line) for line, item in items if item.key == repeated)
        raise DataError(f"{path}: the key '{printable(repeated, limit=80)}' is in the lines {lines}; give each its own")
    return ItemList(tuple(item for _, item in items), tuple(f"{path}: {line}" for line in notes))


def _notes(table: Table) -> Iterator[str]:
    extra = [name for name in table.header if name and name not in KNOWN]
    if extra:
        shown = ", ".join(printable(name, limit=40) for name in extra[:8]) + (" and more" if len(extra) > 8 else "")
        yield f"the columns {shown} become metadata"
    if "" in table.header:
        yield "a column without a name is not read"


def _items(folder: Path, table: Table) -> Iterator[tuple[int, Item]]:
    for line, cells in table.rows:
        row = {name: cell for name, cell in zip(table.header, cells, strict=True) if name}
        try:
            yield line, _item(folder, row)
        except (InputError, ValueError) as error:
            raise TableError(f"line {line}: {printable(str(error), limit=400)}") from error


def _item(folder: Path, row: Mapping[str, str]) -> Item:
    images = {name: str(folder / row[name]) for name in MODALITIES if row.get(name)}
    if not images:
        raise InputError("rgb, nir and tir are all empty; give at least one image")
    texts: dict[str, str | None] = {}
    for column, name in TEXT_COLUMNS.items():
        if row.get(column):
            texts[name] = _text(column, row[column])
    first = next(row[name] for name in MODALITIES if row.get(name))
    metadata = _object(row["metadata"]) if row.get("metadata") else {}
    metadata |= {name: cell for name, cell in row.items() if name not in KNOWN and cell}
    return Item(
        images,
        **{"key": first, **texts},
        time=seconds_of(row["time"]) if row.get("time") else None,
        box=_boxes(row),
        quality=_number("quality", row["quality"]) if row.get("quality") else None,
        metadata=metadata,
    )


def _text(column: str, cell: str) -> str | None:
    if column != "key" and is_empty_word(cell):
        raise InputError(f"the {column} '{cell}' is a placeholder for an empty cell; leave the cell empty")
    if column in ("id", "identity") and is_junk(cell):
        return None  # the mark of a detection without an identity
    return cell


def _boxes(row: Mapping[str, str]) -> Box | dict[str, Box] | None:
    if row.get("box"):
        given = json.loads(row["box"])
        return {name: _box(each) for name, each in given.items()} if isinstance(given, dict) else _box(given)
    found = {}
    for start in ("", *(f"{name}_" for name in MODALITIES)):
        cells = [row.get(f"{start}{side}", "") for side in SIDES]
        if any(cells):
            if not all(cells):
                raise InputError(f"a box needs all of {', '.join(start + side for side in SIDES)}, or none of them")
            numbers = [_number(start + side, cell) for side, cell in zip(SIDES, cells, strict=True)]
            found[start.removesuffix("_")] = _box(numbers)
    whole = found.pop("", None)
    if whole is None or not found:
        return found or whole
    return {name: found.get(name, whole) for name in MODALITIES}


def _box(given: Any) -> Box:
    if not isinstance(given, list) or len(given) != 4:
        raise InputError(f"a box is {printable(str(given), limit=60)}; give four numbers, left, top, right, bottom")
    return (given[0], given[1], given[2], given[3])


def _number(column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"the {column} '{printable(cell, limit=40)}' is not a number") from None


def _object(cell: str) -> dict[str, Any]:
    found = json.loads(cell)
    if not isinstance(found, dict):
        raise InputError("the metadata is not a JSON object")
    return found
