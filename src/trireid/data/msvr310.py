"""MSVR310 (vehicles): `{bounding_box_train,query3,bounding_box_test}/<id>/{vis,ni,th}/`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from trireid.data.listing import DatasetFormat, NameFields, SplitRecords, join_splits
from trireid.data.triplets import read_identity_split

NAME = re.compile(r"(?P<identity>\d{4})_s(?P<scene>\d{3})_v(?P<view>[0-7])_\d+", re.ASCII)


def parse_name(stem: str) -> NameFields | None:
    """Fields of a name like `0002_s013_v4_003`: identity, scene, view, number. The view stands for the camera."""
    match = NAME.fullmatch(stem)
    return NameFields(match["identity"], match["view"], match["scene"]) if match else None


def read(root: Path) -> SplitRecords:
    """List the triplets of the three splits; its own scene is hidden from a query."""
    read_split = partial(
        read_identity_split,
        root,
        parse=_parse_in,
        pattern="0002_s013_v4_003.jpg, with the identity of its folder",
        strict=True,
        prefixed=False,
    )
    return join_splits(read_split("bounding_box_train"), read_split("query3"), read_split("bounding_box_test"))


def _parse_in(identity: str, stem: str) -> NameFields | None:
    fields = parse_name(stem)
    return fields if fields is not None and int(fields.identity) == int(identity) else None


FORMAT = DatasetFormat(
    name="msvr310",
    exclude="scene",
    published={"train": (1032, 155), "query": (591, 52), "gallery": (1055, 155)},
    read=read,
)
