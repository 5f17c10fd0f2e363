"""RGBNT100 (vehicles): `rgbir/{bounding_box_train,query,bounding_box_test}/`, one strip RGB | NIR | TIR per file."""

from __future__ import annotations

import re
from pathlib import Path

from trireid.data.listing import (
    BAD_NAME,
    DatasetFormat,
    NameFields,
    SplitRead,
    SplitRecords,
    join_splits,
    list_images,
)
from trireid.data.records import Fault, ImageSource, Record
from trireid.data.triplets import missing_split

NAME = re.compile(r"(?P<identity>\d{4})_c(?P<camera>\d{4})_\d+", re.ASCII)
COLUMNS = ((0, 256), (256, 512), (512, 768))
"""Pixel columns of each modality in a strip 768 wide; `data/images.py` refuses a strip of another width."""


def parse_name(stem: str) -> NameFields | None:
    """Fields of a name like `0561_c0001_006`: identity, camera, number."""
    match = NAME.fullmatch(stem)
    return NameFields(match["identity"], match["camera"]) if match else None


def read(root: Path) -> SplitRecords:
    """List the strips of the three splits."""
    names = ("bounding_box_train", "query", "bounding_box_test")
    train, query, gallery = (_read_split(root, f"rgbir/{name}") for name in names)
    return join_splits(train, query, gallery)


def _read_split(root: Path, name: str) -> SplitRead:
    folder = root / name
    if not folder.is_dir():
        return (), [missing_split(root, name)]
    images, faults = list_images(folder)
    records = []
    for stem, path in images.items():
        fields = parse_name(stem)
        if fields is None:
            message = f"{path}: the name must be like 0561_c0001_006.jpg; rename it or move it away"
            faults.append(Fault(BAD_NAME, path, message))
            continue
        sources = tuple(ImageSource(path, columns) for columns in COLUMNS)
        records.append(Record(stem, sources, fields.identity, fields.camera))
    return tuple(records), faults


FORMAT = DatasetFormat(
    name="rgbnt100",
    exclude="camera",
    published={"train": (8675, 50), "query": (1715, 50), "gallery": (8575, 50)},
    read=read,
)
