"""Names to numbers: class and camera indices of the training set, and the codes that the ranking compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trireid.data.consistency import item_key
from trireid.data.records import Record
from trireid.errors import InputError
from trireid.types import UNKNOWN, Labels


@dataclass(frozen=True)
class LabelMap:
    """The training identities and cameras; an index is a position in these sorted names.

    Attributes:
        identities: sorted names; class index = position.
        cameras: sorted names of the known cameras; empty where no training triplet has one.
    """

    identities: tuple[str, ...]
    cameras: tuple[str, ...]

    def __post_init__(self) -> None:
        for field, names in (("identities", self.identities), ("cameras", self.cameras)):
            if list(names) != sorted(set(names)):
                raise InputError(f"label map: {field} must be sorted and without repetition, given {names[:5]} ...")

    @classmethod
    def from_records(cls, records: Iterable[Record]) -> LabelMap:
        """Number the identities and known cameras of the training records."""
        records = tuple(records)
        cameras = {record.camera for record in records if record.camera is not None}
        return cls(tuple(sorted({record.identity for record in records})), tuple(sorted(cameras)))

    @classmethod
    def from_dict(cls, content: Mapping[str, Sequence[str]]) -> LabelMap:
        """The map that `to_dict` wrote.

        Raises:
            InputError: other keys than `identities` and `cameras`.
        """
        if set(content) != {"identities", "cameras"}:
            raise InputError(f"label map: the keys must be identities and cameras, given {sorted(content)}")
        return cls(tuple(content["identities"]), tuple(content["cameras"]))

    def to_dict(self) -> dict[str, list[str]]:
        """Content for JSON."""
        return {"identities": list(self.identities), "cameras": list(self.cameras)}

    def identity_index(self, identity: str) -> int:
        """Class index, `UNKNOWN` outside the training identities."""
        return self._identity_indices.get(identity, UNKNOWN)

    def camera_index(self, camera: str | None) -> int:
        """Index among the training cameras, `UNKNOWN` where the camera is none of them or not known."""
        return UNKNOWN if camera is None else self._camera_indices.get(camera, UNKNOWN)

    @cached_property
    def _identity_indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.identities)}

    @cached_property
    def _camera_indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.cameras)}


def rank_labels(query: Sequence[Record], gallery: Sequence[Record]) -> tuple[Labels, Labels]:
    """Codes of query and gallery that mean the same in both.

    The same triplet (name, identity, camera and scene) has the same item number in both, also where the query is a
    copy in another folder. Where query is gallery, both are the same object.
    """
    records = [*query, *gallery]
    identities = _codes(record.identity for record in records)
    cameras = _codes(record.camera for record in records)
    scenes = _codes(record.scene for record in records)
    items: dict[tuple[str, str, str | None, str | None], int] = {}
    for record in (*gallery, *query):
        items.setdefault(item_key(record), len(items))

    def encode(chosen: Sequence[Record]) -> Labels:
        return Labels(
            identity=_tensor(identities[record.identity] for record in chosen),
            camera=_tensor(cameras.get(record.camera, UNKNOWN) for record in chosen),
            scene=_tensor(scenes.get(record.scene, UNKNOWN) for record in chosen),
            item=_tensor(items[item_key(record)] for record in chosen),
        )

    gallery_labels = encode(gallery)
    return (gallery_labels if query is gallery else encode(query)), gallery_labels


def _codes(names: Iterable[str | None]) -> dict[str | None, int]:
    known = sorted({name for name in names if name is not None})
    return {name: code for code, name in enumerate(known)}


def _tensor(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)
