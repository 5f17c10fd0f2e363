"""Checks between the splits of a data set: identities do not overlap, no split is swapped, every query has a match."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trireid.data.listing import (
    EMPTY_SPLIT,
    IDENTITY_OVERLAP,
    SWAPPED_SPLIT,
    TREE_FAULTS,
    UNMATCHED_QUERY,
    SplitRecords,
)
from trireid.data.records import Fault, Record
from trireid.types import EXCLUSION_FIELD, Exclusion

SPLIT_PAIRS = (("train", "gallery"), ("train", "query"), ("query", "gallery"))


ItemKey = tuple[str, str, str | None, str | None]
"""Name, identity, camera and scene of a triplet."""


def item_key(record: Record) -> ItemKey:
    """Key that is equal for the same item in query and gallery.

    It holds the name and its fields, not the path: RGBNT100 and MSVR310 keep copies of the queries in another folder.
    """
    return (record.name, record.identity, record.camera, record.scene)


def count(records: Sequence[Record]) -> tuple[int, int]:
    """(triplets, identities) of a split."""
    return len(records), len({record.identity for record in records})


def unmatched_queries(query: Sequence[Record], gallery: Sequence[Record], exclude: Exclusion) -> tuple[Record, ...]:
    """The queries without a match: the exclusion rule leaves no gallery item of their identity."""
    total: Counter[str] = Counter(record.identity for record in gallery)
    excluded: dict[str, Counter[str]] = defaultdict(Counter)
    for record in gallery:
        group = exclusion_group(record, exclude)
        if group is not None:
            excluded[record.identity][group] += 1
    items = {item_key(record) for record in gallery}

    def matches(record: Record) -> int:
        group = exclusion_group(record, exclude)
        hidden = excluded[record.identity][group] if group is not None else int(item_key(record) in items)
        return total[record.identity] - hidden

    return tuple(record for record in query if matches(record) == 0)


def exclusion_group(record: Record, exclude: Exclusion) -> str | None:
    """The camera or scene that is hidden from a query of this record; None if unknown or not used by the rule."""
    field = EXCLUSION_FIELD[exclude]
    value: str | None = None if field is None else getattr(record, field)
    return value


def unknown_fields(query: Sequence[Record], gallery: Sequence[Record], exclude: Exclusion) -> list[str]:
    """`describe_unknown` for the records of both sides (the same object if the queries are the gallery)."""
    field = EXCLUSION_FIELD[exclude]
    if field is None:
        return []
    sides = {"queries": query} | ({} if gallery is query else {"gallery items": gallery})
    return describe_unknown(
        exclude, {name: (sum(getattr(each, field) is None for each in side), len(side)) for name, side in sides.items()}
    )


def describe_unknown(exclude: Exclusion, sides: Mapping[str, tuple[int, int]]) -> list[str]:
    """Describe the items to which the rule cannot be applied, because their field is unknown; empty if there are none.

    Args:
        exclude: exclusion rule.
        sides: name of a side (such as `queries`) -> (items whose field is not known, all items).
    """
    lacking = [f"{unknown} of {total} {name}" for name, (unknown, total) in sides.items() if unknown]
    if not lacking:
        return []
    if any(unknown == total for unknown, total in sides.values()):
        what = f"the rule {exclude} can hide nothing, only the item itself is excluded"
    else:
        what = "only the item itself is excluded for them"
    field = EXCLUSION_FIELD[exclude]
    return [f"the {field} of {' and '.join(lacking)} is not known: {what}, which makes the ranking easier"]


def separate_identities(splits: SplitRecords) -> tuple[SplitRecords, list[Fault]]:
    """Remove identities of the test splits from training, with one fault each."""
    tested = {record.identity for record in (*splits.query, *splits.gallery)}
    overlap = Counter(record.identity for record in splits.train if record.identity in tested)
    if not overlap:
        return splits, []
    kept = tuple(record for record in splits.train if record.identity not in overlap)
    first = {record.identity: record for record in reversed(splits.train)}
    faults = [
        Fault(
            IDENTITY_OVERLAP,
            record_path(first[identity]),
            f"identity {identity}: {overlap[identity]} training triplets of an identity that is also in the test "
            "splits; training and test identities must differ, check whether folders were swapped or copied",
        )
        for identity in sorted(overlap)
    ]
    return replace(splits, train=kept), faults


def drop_unmatched(splits: SplitRecords, exclude: Exclusion) -> tuple[SplitRecords, list[Fault]]:
    """Remove the queries without a match, with one fault each.

    If query and gallery are one set they stay, because they are gallery items too; the ranking counts them as
    unmatched and leaves them out of its means, which gives the same metrics.
    """
    unmatched = unmatched_queries(splits.query, splits.gallery, exclude)
    if not unmatched or not splits.gallery:
        return splits, []
    rule = "" if exclude == "none" else f" once its own {EXCLUSION_FIELD[exclude]} is excluded"
    faults = [
        Fault(
            UNMATCHED_QUERY,
            record_path(record),
            f"query {record.name}: the gallery has no other triplet of identity {record.identity}{rule}; "
            "add one, or take it out of the queries",
        )
        for record in unmatched
    ]
    if splits.query is splits.gallery:
        return splits, faults
    names = {record.name for record in unmatched}
    kept = tuple(record for record in splits.query if record.name not in names)
    return replace(splits, query=kept), faults


def swapped_splits(splits: SplitRecords, published: Mapping[str, tuple[int, int]], root: Path) -> list[Fault]:
    """A fault for two splits that have exactly each other's published counts."""
    found = {"train": count(splits.train), "query": count(splits.query), "gallery": count(splits.gallery)}
    faults = []
    for one, other in SPLIT_PAIRS:
        if not published or published[one] == published[other]:
            continue
        if found[one] == published[other] and found[other] == published[one]:
            message = (
                f"{root}: {one} has {found[one][0]} triplets and {other} {found[other][0]}, but the published "
                "counts are the other way round; the two folders were swapped: rename them"
            )
            faults.append(Fault(SWAPPED_SPLIT, root, message))
    return faults


def empty_splits(splits: SplitRecords, faults: Sequence[Fault], root: Path) -> list[Fault]:
    """A fault for each split without a usable triplet, unless a fault of the whole tree already explains it."""
    if any(fault.kind in TREE_FAULTS for fault in faults):
        return []
    named = {"train": splits.train, "query": splits.query, "gallery": splits.gallery}
    why = f" (first fault: {faults[0].message})" if faults else ""
    return [
        Fault(EMPTY_SPLIT, root, f"{root}: no usable triplet in the {name} split{why}; it needs at least one")
        for name, records in named.items()
        if not records
    ]


def record_path(record: Record) -> Path:
    """The first image file of a record."""
    return next(source.path for source in record.images if source is not None)
