"""WMVeID863 (vehicles): `{train,query,test}/<id>/{vis,ni,th}/`; one or two files of a triplet may be missing."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from trireid.data.listing import DatasetFormat, NameFields, SplitRecords, join_splits
from trireid.data.triplets import read_identity_split

CAMERA = re.compile(r"(?<![a-z])v(\d)(?!\d)", re.ASCII)
NIGHT = re.compile(r"(?<![a-z])n(\d)(?!\d)", re.ASCII)
SCENE = re.compile(r"(?<!\d)(\d{3})(?!\d)", re.ASCII)


def parse_name(stem: str) -> tuple[str, str, bool] | None:
    """Camera, scene and night flag of a name like `v1_n0_s012_0003`, None if a field is missing.

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
    read_split = partial(
        read_identity_split,
        root,
        parse=_parse_in,
        pattern="v1_n0_s012_0003.jpg (camera, night flag, scene of three digits)",
        strict=False,
        prefixed=True,
    )
    return join_splits(read_split("train"), read_split("query"), read_split("test"))


def _parse_in(identity: str, stem: str) -> NameFields | None:
    fields = parse_name(stem)
    return NameFields(identity, fields[0], fields[1]) if fields is not None else None


FORMAT = DatasetFormat(name="wmveid863", exclude="camera", published={}, read=read)
