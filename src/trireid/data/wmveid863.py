"""WMVeID863 (vehicles): `{train,query,test}/<id>/{vis,ni,th}/`; a triplet may lack one or two of its files."""

from __future__ import annotations

import re
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

CAMERA = re.compile(r"(?<![a-z])v(\d)(?!\d)")
NIGHT = re.compile(r"(?<![a-z])n(\d)(?!\d)")
SCENE = re.compile(r"(?<!\d)(\d{3})(?!\d)")
FOLDERS = ("vis", "ni", "th")


def parse_name(stem: str) -> tuple[str, str, bool] | None:
    """Camera, scene and night flag of a name like `v1_n0_s012_0003`, None where a field is missing.

    Accepted: any name that has a `v` and one digit (camera), an `n` and one digit (night where it is not 0) and a
    field of exactly three digits, the first of which is the scene. Order and separators are free, because the
    public descriptions of the set fix the fields and not the whole name.
    """
    camera, night, scene = CAMERA.search(stem), NIGHT.search(stem), SCENE.search(stem)
    if camera is None or night is None or scene is None:
        return None
    return camera[1], scene[1], night[1] != "0"


def read(root: Path) -> SplitRecords:
    """List the triplets of the three splits; the identity is the name of the folder."""
    splits, faults = [], []
    for name in ("train", "query", "test"):
        records, found = _read_split(root, name)
        splits.append(records)
        faults.extend(found)
    return SplitRecords(*splits, faults=tuple(faults))


def _read_split(root: Path, name: str) -> tuple[tuple[Record, ...], list[Fault]]:
    if not (root / name).is_dir():
        return (), [missing_split(root, name)]
    identities, faults = list_identity_folders(root / name)
    records: list[Record] = []
    for folder in identities:

        def parse(stem: str, identity: str = folder.name) -> NameFields | None:
            fields = parse_name(stem)
            return NameFields(identity, fields[0], fields[1]) if fields else None

        found, wrong = read_triplets(
            [folder / part for part in FOLDERS],
            parse=parse,
            pattern="v1_n0_s012_0003.jpg (camera, night flag, scene of three digits)",
            strict=False,
            prefix=f"{folder.name}/",
        )
        if not found and not wrong:
            wrong = [Fault(EMPTY_FOLDER, folder, f"{folder}: no image in {', '.join(FOLDERS)}; remove the folder")]
        records.extend(found)
        faults.extend(wrong)
    return tuple(sorted(records, key=lambda record: record.name)), faults


FORMAT = DatasetFormat(name="wmveid863", exclude="camera", published={}, read=read)
