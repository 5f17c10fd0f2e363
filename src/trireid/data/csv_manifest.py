"""Any other data set: a CSV file `rgb,nir,tir,id,camera,scene,split`, with empty cells for what is not known.

Further columns are kept with the items; metrics can be broken down by them.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from trireid.data.csv_table import TableError, read_table
from trireid.data.listing import (
    BAD_ROW,
    BAD_TABLE,
    DUPLICATE_NAME,
    MISSING_MODALITY,
    NO_MODALITY,
    DatasetFormat,
    SplitRecords,
    is_file,
)
from trireid.data.records import Fault, ImageSource, Record
from trireid.data.spelling import JUNK_IDENTITY, is_empty_word, label_key
from trireid.errors import printable
from trireid.types import MODALITIES

COLUMNS = (*MODALITIES, "id", "camera", "scene", "split")
SPLITS = {"train": ("train",), "query": ("query",), "gallery": ("gallery",), "test": ("query", "gallery")}
_VALIDATION = {"val", "valid", "validation", "dev"}
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories: control characters, surrogates, line and paragraph separators."""


def read(path: Path) -> SplitRecords:
    """Read the table. Image paths are relative to its folder; the split `test` is both query and gallery."""
    try:
        table = read_table(path, COLUMNS)
        if "identity" in map(str.lower, table.header):
            raise TableError("the column `identity` stands beside `id`, which names the same: rename or remove it")
    except TableError as error:
        return SplitRecords((), (), (), (Fault(BAD_TABLE, path, f"{path}: {error}"),))
    splits: dict[str, dict[str, Record]] = {"train": {}, "query": {}, "gallery": {}}
    faults: list[Fault] = []
    respelled: set[str] = set()
    for line, cells in table.rows:
        row = dict(zip(table.header, cells, strict=False))
        wrong = _check_row(path, line, table.header, cells, row)
        if wrong:
            faults.extend(wrong)
            continue
        record = _make_record(path.parent, row)
        if row["split"] not in SPLITS:
            respelled.add(row["split"])
        for split in SPLITS[row["split"].lower()]:
            if record.name in splits[split]:
                reason = f"{path} line {line}: {record.name} is already in the {split} split; keep one of the rows"
                faults.append(Fault(DUPLICATE_NAME, path, reason))
            else:
                splits[split][record.name] = record
    notes = list(table.notes)
    if respelled:
        notes.append(f"the splits {', '.join(sorted(respelled))} are read in lower case")
    train, query, gallery = (_sorted(splits[name]) for name in ("train", "query", "gallery"))
    same = gallery if query == gallery else query
    return SplitRecords(train, same, gallery, tuple(faults), tuple(f"{path}: {note}" for note in notes))


def _sorted(records: dict[str, Record]) -> tuple[Record, ...]:
    return tuple(records[name] for name in sorted(records))


def _check_row(path: Path, line: int, header: tuple[str, ...], cells: list[str], row: dict[str, str]) -> list[Fault]:
    where = f"{path} line {line}"
    if len(cells) != len(header):
        return [Fault(BAD_ROW, path, f"{where}: {len(cells)} cells, but the header has {len(header)}; correct the row")]
    wrong = _wrong_cell(row)
    if wrong is not None:
        return [Fault(BAD_ROW, path, f"{where}: {wrong}")]
    if not any(row[modality] for modality in MODALITIES):
        return [Fault(NO_MODALITY, path, f"{where}: rgb, nir and tir are all empty; give at least one image")]
    return [
        Fault(MISSING_MODALITY, path.parent / row[modality], f"{where}: {_no_file(path.parent, row[modality])}")
        for modality in MODALITIES
        if row[modality] and not is_file(path.parent / row[modality])
    ]


def _wrong_cell(row: dict[str, str]) -> str | None:
    """The first fault of the cells of a row, without looking for files; None if there is none."""
    for column, cell in row.items():
        if any(unicodedata.category(character) in _UNPRINTABLE for character in cell):
            return (
                f"the {column} '{printable(cell, limit=60)}' holds a character that cannot be printed; write plain text"
            )
    if not row["id"]:
        return "the id is empty; every triplet needs one"
    if is_empty_word(row["id"]):
        return (
            f"the id {row['id']!r} is a placeholder for an empty cell; give the identity, or {JUNK_IDENTITY} for a "
            "triplet without one, which is then left out"
        )
    for column in ("camera", "scene"):
        if is_empty_word(row[column]) or label_key(row[column]) == "-1":
            return f"the {column} {row[column]!r} is not a name; leave the cell empty if the {column} is not known"
    if row["split"].lower() not in SPLITS:
        hint = "; to hold out training identities, set data.val_ids" if row["split"].lower() in _VALIDATION else ""
        return f"split '{printable(row['split'], limit=60)}' is none of {', '.join(SPLITS)}{hint}"
    return None


def _no_file(folder: Path, cell: str) -> str:
    """Message for an image file that does not exist, with the likely reason."""
    if "\\" in cell and os.sep == "/":
        return f"no file {printable(cell, limit=200)}; its folders are separated by \\; on this system write /"
    return f"no file {printable(str(folder / cell), limit=300)}; correct the path or empty the cell"


def _make_record(folder: Path, row: dict[str, str]) -> Record:
    images = tuple(ImageSource(folder / row[name]) if row[name] else None for name in MODALITIES)
    name = next(row[modality] for modality in MODALITIES if row[modality])
    others = tuple((column, cell) for column, cell in row.items() if column not in COLUMNS and cell)
    return Record(name, images, row["id"], row["camera"] or None, row["scene"] or None, columns=others)


FORMAT = DatasetFormat(name="csv", exclude=None, published={}, read=read)
