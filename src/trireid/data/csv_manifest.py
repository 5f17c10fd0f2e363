"""Any other set: a CSV `rgb,nir,tir,id,camera,scene,split`, with empty cells where something is not known."""

from __future__ import annotations

import csv
from pathlib import Path

from trireid.data.listing import (
    BAD_ROW,
    BAD_TABLE,
    DUPLICATE_NAME,
    MISSING_MODALITY,
    NO_MODALITY,
    DatasetFormat,
    SplitRecords,
)
from trireid.data.records import Fault, ImageSource, Record
from trireid.types import MODALITIES

COLUMNS = (*MODALITIES, "id", "camera", "scene", "split")
_NO_FILE: dict[type[Exception], str] = {FileNotFoundError: "no such file", IsADirectoryError: "is a folder"}
SPLITS = {"train": ("train",), "query": ("query",), "gallery": ("gallery",), "test": ("query", "gallery")}


def read(path: Path) -> SplitRecords:
    """Read the table; image paths are relative to its folder, split `test` is query and gallery at once."""
    try:
        rows = _read_rows(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = _NO_FILE.get(type(error), f"cannot be read as a CSV file in UTF-8 ({error})")
        return _no_table(path, f"{what}; set data.root to the CSV file itself")
    header, body = (rows[0][1], rows[1:]) if rows else ([], [])
    if sorted(header) != sorted(COLUMNS):
        return _no_table(path, f"{_wrong_header(header)}; it must have exactly {','.join(COLUMNS)}")
    splits: dict[str, dict[str, Record]] = {"train": {}, "query": {}, "gallery": {}}
    faults: list[Fault] = []
    for line, cells in body:
        row = dict(zip(header, cells, strict=False))
        wrong = _check_row(path, line, header, cells, row)
        if wrong:
            faults.extend(wrong)
            continue
        record = _make_record(path.parent, row)
        for split in SPLITS[row["split"]]:
            if record.name in splits[split]:
                reason = f"{path} line {line}: {record.name} is already in the {split} split; keep one of the rows"
                faults.append(Fault(DUPLICATE_NAME, path, reason))
            else:
                splits[split][record.name] = record
    train, query, gallery = (_sorted(splits[name]) for name in ("train", "query", "gallery"))
    return SplitRecords(train, gallery if query == gallery else query, gallery, tuple(faults))


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]


def _no_table(path: Path, reason: str) -> SplitRecords:
    """No records, and the fault that says why."""
    return SplitRecords((), (), (), (Fault(BAD_TABLE, path, f"{path}: {reason}"),))


def _wrong_header(header: list[str]) -> str:
    """What is not as it must be, by name: the reader of a long header should not have to look for it."""
    if not header:
        return "the file is empty"
    said = f"the header has the columns {','.join(header)}"
    if len(header) == 1:
        return f"{said}, without a comma between them"
    lacking = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS]
    parts = [f"{what} {', '.join(names)}" for what, names in (("without", lacking), ("unknown are", unknown)) if names]
    return f"{said} ({'; '.join(parts)})" if parts else f"{said}, one of them twice"


def _sorted(records: dict[str, Record]) -> tuple[Record, ...]:
    return tuple(records[name] for name in sorted(records))


def _check_row(path: Path, line: int, header: list[str], cells: list[str], row: dict[str, str]) -> list[Fault]:
    where = f"{path} line {line}"
    if len(cells) != len(header):
        return [Fault(BAD_ROW, path, f"{where}: {len(cells)} cells, but the header has {len(header)}; correct the row")]
    if not row["id"]:
        return [Fault(BAD_ROW, path, f"{where}: the id is empty; every triplet needs one")]
    if row["split"] not in SPLITS:
        return [Fault(BAD_ROW, path, f"{where}: split {row['split']!r} is none of {', '.join(SPLITS)}")]
    if not any(row[modality] for modality in MODALITIES):
        return [Fault(NO_MODALITY, path, f"{where}: rgb, nir and tir are all empty; give at least one image")]
    images = [path.parent / row[modality] for modality in MODALITIES if row[modality]]
    return [
        Fault(MISSING_MODALITY, image, f"{where}: no file {image}; correct the path or empty the cell")
        for image in images
        if not image.is_file()
    ]


def _make_record(folder: Path, row: dict[str, str]) -> Record:
    images = tuple(ImageSource(folder / row[name]) if row[name] else None for name in MODALITIES)
    name = next(row[modality] for modality in MODALITIES if row[modality])
    return Record(name, images, row["id"], row["camera"] or None, row["scene"] or None)


FORMAT = DatasetFormat(name="csv", exclude=None, published={}, read=read)
