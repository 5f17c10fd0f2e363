"""Read a data set of any known format; a fault is an error, or its triplet is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trireid.data import csv_manifest, msvr310, rgbnt100, rgbnt201, tno_scenes, wmveid863
from trireid.data.consistency import drop_unmatched, empty_splits, separate_identities, swapped_splits
from trireid.data.duplicates import copied_triplets, shared_images
from trireid.data.images import Progress, Verified, verify_images
from trireid.data.listing import BAD_PROTOCOL, MIXED_SPELLING, TREE_FAULTS, DatasetFormat, SplitRecords
from trireid.data.records import DatasetIndex, Fault, ImageFacts, Record
from trireid.data.spelling import mixed_spellings, without_junk
from trireid.errors import DataError
from trireid.types import EXCLUSION_FIELD, Exclusion, Protocol

FORMATS: dict[str, DatasetFormat] = {
    module.FORMAT.name: module.FORMAT for module in (rgbnt201, rgbnt100, msvr310, wmveid863, tno_scenes, csv_manifest)
}
EXCLUSIONS: tuple[Exclusion, ...] = tuple(EXCLUSION_FIELD)
NUM_NAMED_FAULTS = 3


def scan(
    format: str,
    root: Path | str,
    *,
    exclude: str = "auto",
    skip_bad: bool = False,
    workers: int = 4,
    progress: Progress | None = None,
) -> DatasetIndex:
    """Read a data set from disk; any fault is an error, or with `skip_bad` leaves its triplet out.

    Args:
        format: `rgbnt201`, `rgbnt100`, `msvr310`, `wmveid863`, `tno_scenes` or `csv`.
        root: folder of the data set, or the CSV file.
        exclude: gallery items that a query must not see: `auto` is the published rule of the format (CSV: `camera` if
            any test triplet has one, otherwise `none`); or `camera`, `scene`, `cross_camera`, `none`.
        skip_bad: leave faulty triplets out and list them in `index.faults`; decodes every image once.
        workers: threads that decode images for `skip_bad`.
        progress: called with (done, total) while images are decoded.

    Raises:
        DataError: unknown format or rule, a fault of the whole data set, or any fault without `skip_bad`.

    Example:
        >>> import tempfile
        >>> from trireid.data.synthetic import write_synthetic
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = Path(folder, "set")
        ...     _ = write_synthetic(root, layout="msvr310", num_ids=2, per_camera=1, image_size=(16, 32))
        ...     index = scan("msvr310", root)
        >>> len(index.train), index.train[0].identity, index.protocol.exclude
        (4, '0001', 'scene')
    """
    index = read_index(format, Path(root), exclude=exclude, verify_pixels=skip_bad, workers=workers, progress=progress)
    tree = [fault for fault in index.faults if fault.kind in TREE_FAULTS]
    if tree:
        raise DataError(_summary(index, tree, advice=""))
    if index.faults and not skip_bad:
        advice = (
            f"; list all with `trireid check-data --format {format} --root {root}`, "
            "or leave the faulty triplets out with --skip-bad"
        )
        raise DataError(_summary(index, index.faults, advice=advice))
    return index


def read_index(
    format: str,
    root: Path,
    *,
    exclude: str = "auto",
    verify_pixels: bool = False,
    workers: int = 4,
    progress: Progress | None = None,
) -> DatasetIndex:
    """Read a data set and collect every fault in `index.faults` instead of raising; arguments as `scan`.

    Raises:
        DataError: unknown format or exclusion rule.
    """
    if format not in FORMATS:
        raise DataError(f"data format {format!r} is unknown; use one of {', '.join(FORMATS)}")
    if exclude != "auto":
        _known_exclusion(exclude)  # reported before all images are decoded
    dataset = FORMATS[format]
    splits = without_junk(dataset.read(root))
    faults = [*splits.faults, *mixed_spellings(splits, root), *swapped_splits(splits, dataset.published, root)]
    splits, found = shared_images(splits)
    faults += found
    facts: dict[Path, ImageFacts] = {}
    if verify_pixels:
        splits, verified = _drop_unreadable(splits, workers=workers, progress=progress)
        facts = verified.facts
        splits, copied, copies = copied_triplets(splits)
        splits, faults = replace(splits, notes=(*splits.notes, *copies)), [*faults, *verified.faults, *copied]
    rule = _resolve_exclusion(dataset, exclude, (*splits.query, *splits.gallery))
    splits, found = separate_identities(splits)
    faults += found
    if not any(fault.kind == MIXED_SPELLING for fault in faults):  # it would cause most of these
        splits, found = drop_unmatched(splits, rule)
        faults += found
    if exclude != "auto":  # with auto, a side without cameras is still ranked, and a note says so
        faults += _unknown_protocol(splits, rule, root)
    faults += empty_splits(splits, faults, root)
    return DatasetIndex(
        format=format,
        root=root,
        train=splits.train,
        query=splits.query,
        gallery=splits.gallery,
        protocol=Protocol(name=format, exclude=rule),
        faults=tuple(dict.fromkeys(faults)),  # a missing root is found once per split
        notes=splits.notes,
        published=dataset.published,
        facts=facts,
    )


def _resolve_exclusion(dataset: DatasetFormat, exclude: str, tested: tuple[Record, ...]) -> Exclusion:
    if exclude == "auto":
        if dataset.exclude is not None:
            return dataset.exclude
        return "camera" if any(record.camera is not None for record in tested) else "none"
    return _known_exclusion(exclude)


def _known_exclusion(exclude: str) -> Exclusion:
    for rule in EXCLUSIONS:
        if exclude == rule:
            return rule
    raise DataError(f"data.exclude {exclude!r} is unknown; use one of auto, {', '.join(EXCLUSIONS)}")


def _unknown_protocol(splits: SplitRecords, rule: Exclusion, root: Path) -> list[Fault]:
    """A fault if the chosen rule cannot exclude anything, because no item of one side has the field."""
    field = EXCLUSION_FIELD[rule]
    if field is None:
        return []
    sides = {"query": splits.query, "gallery item": splits.gallery}
    return [
        Fault(
            BAD_PROTOCOL,
            root,
            f"{root}: data.exclude is {rule}, but no {name} has a {field}; set data.exclude to another rule",
        )
        for name, records in sides.items()
        if records and all(getattr(record, field) is None for record in records)
    ][:1]


def _drop_unreadable(splits: SplitRecords, *, workers: int, progress: Progress | None) -> tuple[SplitRecords, Verified]:
    records = (*splits.train, *splits.query, *splits.gallery)
    verified = verify_images(records, workers=workers, progress=progress)
    bad = {fault.path for fault in verified.faults}

    def is_readable(record: Record) -> bool:
        return not any(source is not None and source.path in bad for source in record.images)

    return splits.filtered(is_readable), verified


def _summary(index: DatasetIndex, faults: list[Fault] | tuple[Fault, ...], *, advice: str) -> str:
    shown = "; ".join(fault.message for fault in faults[:NUM_NAMED_FAULTS])
    number = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    more = ", the first ones" if len(faults) > NUM_NAMED_FAULTS else ""
    return f"{index.format} data set {index.root}: {number}{more}: {shown}{advice}"
