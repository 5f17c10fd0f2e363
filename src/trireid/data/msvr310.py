"""MSVR310 (vehicles): `{bounding_box_train,query3,bounding_box_test}/<id>/{vis,ni,th}/`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from trireid.data.listing import (
    EMPTY_FOLDER,
    DatasetFormat,
    NameFields,
    SplitRecords,
    list_identity_folders,
    missing_split,
    read_triplets,
)
from trireid.data.records import Fault, Record

NAME = re.compile(r"(?P<identity>\d{4})_s(?P<scene>\d{3})_v(?P<view>[0-7])_\d+")
FOLDERS = ("vis", "ni", "th")


def parse_name(stem: str) -> NameFields | None:
    """Fields of a name like `0002_s013_v4_003`: identity, scene, view, number. The view stands for the camera."""
    match = NAME.fullmatch(stem)
    return NameFields(match["identity"], match["view"], match["scene"]) if match else None


def read(root: Path) -> SplitRecords:
    """List the triplets of the three splits; a query must not see its own scene."""
    splits, faults = [], []
    for name in ("bounding_box_train", "query3", "bounding_box_test"):
        records, found = _read_split(root, name)
        splits.append(records)
        faults.extend(found)
    return SplitRecords(*splits, faults=tuple(faults))


def _parse_in(identity: str, stem: str) -> NameFields | None:
    fields = parse_name(stem)
    return fields if fields is not None and int(fields.identity) == int(identity) else None


def _read_split(root: Path, name: str) -> tuple[tuple[Record, ...], list[Fault]]:
    if not (root / name).is_dir():
        return (), [missing_split(root, name)]
    identities, faults = list_identity_folders(root / name)
    records: list[Record] = []
    for folder in identities:
        pattern = f"{folder.name}_s013_v4_003.jpg, with the identity of its folder"
        parse = partial(_parse_in, folder.name)
        found, wrong = read_triplets([folder / part for part in FOLDERS], parse=parse, pattern=pattern, strict=True)
        if not found and not wrong:
            wrong = [Fault(EMPTY_FOLDER, folder, f"{folder}: no image in {', '.join(FOLDERS)}; remove the folder")]
        records.extend(found)
        faults.extend(wrong)
    return tuple(sorted(records, key=lambda record: record.name)), faults


FORMAT = DatasetFormat(
    name="msvr310",
    exclude="scene",
    published={"train": (1032, 155), "query": (591, 52), "gallery": (1055, 155)},
    read=read,
)
