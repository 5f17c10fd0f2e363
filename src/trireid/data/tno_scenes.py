"""Scene patches of the TNO Image Fusion Dataset: `{train,test}/` with `RGB/`, `NI/`, `TI/`, as in RGBNT201.

`benchmarks/tno_scenes.py` writes such a tree. An identity is a patch of one of eight scenes, and its number tells
which.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trireid.data import rgbnt201
from trireid.data.listing import BAD_NAME, DatasetFormat, SplitRecords
from trireid.data.records import Fault, Record

SCENES = {
    "Kaptein_1654": range(1, 38),
    "Marne_03": range(38, 61),
    "Marne_04": range(61, 100),
    "barbed_wire_1": range(100, 121),
    "Movie_12": range(121, 144),
    "Marne_15": range(144, 174),
    "Marne_01": range(174, 180),
    "Kaptein_01": range(180, 199),
}
"""Identities of each scene, which has the name of the folder of its first capture."""
_SCENE_OF = {identity: name for name, identities in SCENES.items() for identity in identities}


def scene_of(identity: str) -> str | None:
    """The scene of an identity such as `000038`; None if the set has no such identity."""
    return _SCENE_OF.get(int(identity))


def read(root: Path) -> SplitRecords:
    """List the training and test triplets; the test set is both query and gallery, camera is the capture."""
    splits = rgbnt201.read(root)
    train, test = (tuple(map(_with_scene, records)) for records in (splits.train, splits.gallery))
    first = {record.identity: record for record in (*train, *test) if record.scene is None}
    faults = [
        Fault(BAD_NAME, _path(record), f"{_path(record)}: the identities of this set are 1 to {len(_SCENE_OF)}; {_FIX}")
        for record in first.values()
    ]
    made = SplitRecords(train, test, test, (*splits.faults, *faults), splits.notes)
    return made.filtered(lambda record: record.scene is not None)


_FIX = "use data.format=rgbnt201 for another set, or move it away"


def _with_scene(record: Record) -> Record:
    return replace(record, scene=scene_of(record.identity))


def _path(record: Record) -> Path:
    return next(source.path for source in record.images if source is not None)


FORMAT = DatasetFormat(
    name="tno_scenes",
    exclude="camera",
    published={"train": (816, 102), "query": (768, 96), "gallery": (768, 96)},
    read=read,
)
