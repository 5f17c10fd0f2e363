"""Map names to numbers: class and camera indices of the training set, and the codes that the ranking compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from trireid.data.consistency import ItemKey, item_key
from trireid.data.duplicates import same_items
from trireid.data.records import Record
from trireid.data.spelling import find_label, label_positions
from trireid.errors import InputError
from trireid.types import UNKNOWN, Labels


@dataclass(frozen=True)
class LabelMap:
    """The training identities and cameras; an index is a position in these sorted names.

    Attributes:
        identities: sorted names; class index = position.
        cameras: sorted names of the known cameras; empty if no training triplet has one.
    """

    identities: tuple[str, ...]
    cameras: tuple[str, ...]

    def __post_init__(self) -> None:
        for field, names in (("identities", self.identities), ("cameras", self.cameras)):
            if any(first >= second for first, second in pairwise(names)):
                raise InputError(f"label map: {field} must be sorted, without repetition, given {names[:5]} ...")

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
        """Class index, `UNKNOWN` outside the training identities; `1.0` finds `1` if that is the only spelling."""
        return find_label(self._identity_indices, identity)

    def camera_index(self, camera: str | None) -> int:
        """Index among the training cameras, `UNKNOWN` if the camera is not one of them or not known."""
        return UNKNOWN if camera is None else find_label(self._camera_indices, camera)

    @cached_property
    def _identity_indices(self) -> tuple[dict[str, int], dict[str, int]]:
        return label_positions(self.identities)

    @cached_property
    def _camera_indices(self) -> tuple[dict[str, int], dict[str, int]]:
        return label_positions(self.cameras)


def rank_labels(query: Sequence[Record], gallery: Sequence[Record]) -> tuple[Labels, Labels]:
    """Labels of query and gallery as numbers, with the same codes in both.

    The same triplet has the same item number in both: the same name, identity, camera and scene, or the same images
    (`duplicates.same_items`), also if the query is a copy in another folder. If query is gallery, both are the same
    object.
    """
    records = [*query, *gallery]
    identities = _codes(record.identity for record in records)
    cameras = _codes(record.camera for record in records)
    scenes = _codes(record.scene for record in records)
    leaders = same_items((*gallery, *query))
    items: dict[ItemKey, int] = {}
    for record in (*gallery, *query):
        items.setdefault(leaders[item_key(record)], len(items))

    def encode(chosen: Sequence[Record]) -> Labels:
        return Labels(
            identity=_tensor(identities[record.identity] for record in chosen),
            camera=_tensor(cameras.get(record.camera, UNKNOWN) for record in chosen),
            scene=_tensor(scenes.get(record.scene, UNKNOWN) for record in chosen),
            item=_tensor(items[leaders[item_key(record)]] for record in chosen),
        )

    gallery_labels = encode(gallery)
    return (gallery_labels if query is gallery else encode(query)), gallery_labels


def copied_queries(
    query: Sequence[Record], gallery: Sequence[Record], *, query_labels: Labels, gallery_labels: Labels
) -> int:
    """How many queries are the same item as a gallery triplet of another name; labels as of `rank_labels`."""
    names: dict[int, set[ItemKey]] = {}
    for record, item in zip(gallery, gallery_labels.item.tolist(), strict=True):
        names.setdefault(item, set()).add(item_key(record))
    queries = zip(query, query_labels.item.tolist(), strict=True)
    return sum(bool(names.get(item, set()) - {item_key(record)}) for record, item in queries)


def _codes(names: Iterable[str | None]) -> dict[str | None, int]:
    known = sorted({name for name in names if name is not None})
    return {name: code for code, name in enumerate(known)}


def _tensor(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)
