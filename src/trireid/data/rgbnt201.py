"""RGBNT201 (persons): `{train_171 or train,test}/`, each with the same file names in `RGB/`, `NI/`, `TI/`."""

from __future__ import annotations

import re
from pathlib import Path

from trireid.data.listing import (
    EMPTY_FOLDER,
    MISSING_FOLDER,
    DatasetFormat,
    NameFields,
    SplitRead,
    SplitRecords,
    join_splits,
    list_images,
)
from trireid.data.records import Fault
from trireid.data.triplets import missing_split, read_triplets

NAME = re.compile(r"(?P<identity>\d{6})_cam(?P<camera>\d)_\d+_\d+", re.ASCII)
FOLDERS = ("RGB", "NI", "TI")


def parse_name(stem: str) -> NameFields | None:
    """Fields of a name like `000028_cam1_0_02`: identity, camera, sequence, number."""
    match = NAME.fullmatch(stem)
    return NameFields(match["identity"], match["camera"]) if match else None


def read(root: Path) -> SplitRecords:
    """List the training and test triplets; the test set is both query and gallery."""
    # The public archive has train_171; if both exist it is used, as in published code.
    train_name = "train_171" if (root / "train_171").is_dir() else "train"
    test = _read_split(root, "test")
    return join_splits(_read_split(root, train_name), (test[0], []), test)


def _read_split(root: Path, name: str) -> SplitRead:
    folder = root / name
    if not folder.is_dir():
        return (), [missing_split(root, name)]
    folders = [folder / modality for modality in FOLDERS]
    faults = [
        Fault(MISSING_FOLDER, path, f"{path}: the folder is missing; a split needs {', '.join(FOLDERS)}")
        for path in folders
        if not path.is_dir()
    ]
    if not faults:
        faults = [
            Fault(EMPTY_FOLDER, path, f"{path}: no image in the folder; restore the files")
            for path in folders
            if not list_images(path)[0]
        ]
    if faults:  # one line for the folder says more than one for each of its triplets
        return (), faults
    records, faults = read_triplets(folders, parse=parse_name, pattern="000028_cam1_0_02.jpg", strict=True)
    return tuple(records), faults


FORMAT = DatasetFormat(
    name="rgbnt201",
    exclude="camera",
    published={"train": (3951, 171), "query": (836, 30), "gallery": (836, 30)},
    read=read,
)
