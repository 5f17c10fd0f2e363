"""Check a whole data set before a long training: counts, available modalities and every fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trireid.data.consistency import count, unknown_fields
from trireid.data.image_report import describe_images
from trireid.data.images import Progress
from trireid.data.readers import read_index
from trireid.data.records import Fault, Record
from trireid.types import MODALITIES


@dataclass(frozen=True)
class SplitReport:
    """Counts of one split.

    Attributes:
        name: `train`, `query` or `gallery`.
        triplets, identities, cameras, scenes: how many (known cameras and scenes only).
        available: triplets that have each modality, in the order of `MODALITIES`.
        published: published (triplets, identities); None if there are no published counts.
    """

    name: str
    triplets: int
    identities: int
    cameras: int
    scenes: int
    available: tuple[int, ...]
    published: tuple[int, int] | None

    def difference(self) -> str:
        """How its counts differ from the published ones; empty where they do not."""
        found = (self.triplets, self.identities)
        if self.published is None or self.published == found:
            return ""
        known = "{} of {}".format(*self.published)
        return f"{self.name} has {self.triplets} triplets of {self.identities} identities (published: {known})"


@dataclass(frozen=True)
class CheckReport:
    """What `trireid check-data` found.

    Attributes:
        format, root, exclude: what was read, and the exclusion rule of its protocol.
        splits: counts of the usable triplets; faulty ones are left out.
        query_is_gallery: whether query and gallery are one set.
        faults: every fault, those of the pixels included.
        images: formats, depths, ranges and orientations of each modality, one line each.
        warnings: what is not a fault but may be a mistake, one line each.
        notes: what affects the meaning of the metrics, one line each.
    """

    format: str
    root: Path
    exclude: str
    splits: tuple[SplitReport, ...]
    query_is_gallery: bool
    faults: tuple[Fault, ...]
    images: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if there is no fault. Counts that differ from the published ones are not faults."""
        return not self.faults

    def lines(self, *, max_faults: int | None = None) -> list[str]:
        """The report as lines of text, with at most `max_faults` faults of each kind (None: all)."""
        shared = ", query and gallery are one set" if self.query_is_gallery else ""
        lines = [f"{self.format} data set {self.root} (a query excludes: {self.exclude}{shared})"]
        lines += _table([_HEADER, *(_row(split) for split in self.splits)])
        lines += [*self.images, *(f"warning: {line}" for line in self.warnings)]
        lines += [f"note: {note}" for note in self.notes]
        if self.ok:
            return [*lines, "no fault found" + self._difference()]
        kinds = Counter(fault.kind for fault in self.faults)
        total = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        lines.append(f"{total}: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items()))
        for kind, number in kinds.items():
            shown = [fault for fault in self.faults if fault.kind == kind][:max_faults]
            lines += [f"  {kind}: {fault.message}" for fault in shown]
            if len(shown) < number:
                lines.append(f"  {kind}: and {number - len(shown)} more")
        return lines

    def _difference(self) -> str:
        """The end of the line about no faults where counts differ from the published ones, else nothing."""
        splits = self.splits[:2] if self.query_is_gallery else self.splits
        parts = "; ".join(filter(None, (split.difference() for split in splits)))
        return f", but the counts differ from the published ones: {parts}" if parts else ""


_HEADER = ("split", "triplets", "published", "identities", "published", "cameras", "scenes", *MODALITIES)


def check_dataset(
    format: str, root: Path, *, exclude: str = "auto", workers: int = 4, progress: Progress | None = None
) -> CheckReport:
    """Read a data set, decode every image and report; arguments as `trireid.data.readers.scan`.

    Raises:
        DataError: unknown format or exclusion rule. Everything else is a fault in the report.

    Example:
        >>> import tempfile
        >>> from trireid.data.synthetic import write_synthetic
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = Path(folder, "set")
        ...     _ = write_synthetic(root, layout="msvr310", num_ids=2, per_camera=1, image_size=(16, 32))
        ...     report = check_dataset("msvr310", root)
        >>> report.ok, report.splits[0].triplets
        (True, 4)
    """
    index = read_index(format, root, exclude=exclude, verify_pixels=True, workers=workers, progress=progress)
    images, warnings = describe_images(index.train, (*index.query, *index.gallery), index.facts, workers=workers)
    named = {"train": index.train, "query": index.query, "gallery": index.gallery}
    return CheckReport(
        format=format,
        root=root,
        exclude=index.protocol.exclude,
        splits=tuple(_report(name, records, index.published.get(name)) for name, records in named.items()),
        query_is_gallery=index.query_is_gallery,
        faults=index.faults,
        images=tuple(images),
        warnings=tuple(warnings),
        notes=(*index.notes, *unknown_fields(index.query, index.gallery, index.protocol.exclude)),
    )


def _report(name: str, records: Sequence[Record], published: tuple[int, int] | None) -> SplitReport:
    triplets, identities = count(records)
    return SplitReport(
        name=name,
        triplets=triplets,
        identities=identities,
        cameras=len({record.camera for record in records} - {None}),
        scenes=len({record.scene for record in records} - {None}),
        available=tuple(
            sum(record.images[index] is not None for record in records) for index in range(len(MODALITIES))
        ),
        published=published,
    )


def _row(split: SplitReport) -> tuple[str, ...]:
    published = ("-", "-") if split.published is None else (str(split.published[0]), str(split.published[1]))
    numbers = (split.triplets, published[0], split.identities, published[1], split.cameras, split.scenes)
    return (split.name, *map(str, numbers), *map(str, split.available))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in ([*zip(row, widths, strict=True)] for row in rows)
    ]
