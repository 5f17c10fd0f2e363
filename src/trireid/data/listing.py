"""Shared by the readers: what they return, the kinds of faults, and sorted listings of folders."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trireid.data.records import Fault, Record
from trireid.names import Exclusion

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".npy")
OTHER_IMAGE_SUFFIXES = (".gif", ".jp2", ".avif", ".heic", ".jxl", ".pgm", ".ppm", ".exr", ".dng", ".seq")

MISSING_SPLIT, MISSING_FOLDER, EMPTY_FOLDER = "missing_split", "missing_folder", "empty_folder"
EMPTY_SPLIT, SWAPPED_SPLIT, BAD_TABLE, BAD_PROTOCOL = "empty_split", "swapped_split", "bad_table", "bad_protocol"
BAD_NAME, DUPLICATE_NAME, BAD_ROW = "bad_name", "duplicate_name", "bad_row"
MISSING_MODALITY, NO_MODALITY, UNREADABLE_IMAGE = "missing_modality", "no_modality", "unreadable_image"
IDENTITY_OVERLAP, UNMATCHED_QUERY = "identity_overlap", "unmatched_query"
MIXED_SPELLING, SHARED_IMAGE, COPIED_IMAGE = "mixed_spelling", "shared_image", "copied_image"

TREE_FAULTS = frozenset(
    {MISSING_SPLIT, MISSING_FOLDER, EMPTY_SPLIT, SWAPPED_SPLIT, BAD_TABLE, BAD_PROTOCOL, MIXED_SPELLING}
)
"""Kinds that concern the whole data set: leaving out single triplets does not repair them."""


@dataclass(frozen=True)
class NameFields:
    """Fields of a file name; camera and scene are None if the name does not hold them."""

    identity: str
    camera: str | None = None
    scene: str | None = None


@dataclass(frozen=True)
class SplitRecords:
    """What a reader found: sorted records by split, faults, and notes on what was read in an unusual way.

    If one set is both query and gallery, both are the same tuple object.
    """

    train: tuple[Record, ...]
    query: tuple[Record, ...]
    gallery: tuple[Record, ...]
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def distinct(self) -> dict[str, tuple[Record, ...]]:
        """The records of each split by its name, without `query` if query and gallery are one set."""
        splits = {"train": self.train, "query": self.query, "gallery": self.gallery}
        if self.query is self.gallery:
            del splits["query"]
        return splits

    def filtered(self, keep: Callable[[Record], bool]) -> SplitRecords:
        """The splits with the records for which `keep` is true; one set that is both query and gallery stays one."""
        gallery = tuple(filter(keep, self.gallery))
        query = gallery if self.query is self.gallery else tuple(filter(keep, self.query))
        return replace(self, train=tuple(filter(keep, self.train)), query=query, gallery=gallery)


SplitRead = tuple[tuple[Record, ...], list[Fault]]
"""One split as read: its sorted records and its faults."""


def join_splits(train: SplitRead, query: SplitRead, gallery: SplitRead) -> SplitRecords:
    """Join the three splits of a reader."""
    return SplitRecords(train[0], query[0], gallery[0], (*train[1], *query[1], *gallery[1]))


@dataclass(frozen=True)
class DatasetFormat:
    """One data set format: how it is read and how it is ranked.

    Attributes:
        name: as in `data.format`.
        exclude: the published exclusion rule; None if the format has none of its own (CSV).
        published: (triplets, identities) by split; empty if there are no published counts.
        read: lists the files under the root; opens no image.
    """

    name: str
    exclude: Exclusion | None
    published: Mapping[str, tuple[int, int]]
    read: Callable[[Path], SplitRecords]


def is_file(path: Path) -> bool:
    """Whether a path is a regular file; False also for a name that no file can have."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a NUL in it
        return False


def list_images(folder: Path) -> tuple[dict[str, Path], list[Fault]]:
    """The images of a folder by stem, sorted by name; hidden files and files that are not images are ignored."""
    images: dict[str, Path] = {}
    faults: list[Fault] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not is_file(path):
            continue
        suffix = path.suffix.lower()
        if suffix in OTHER_IMAGE_SUFFIXES:
            allowed = ", ".join(IMAGE_SUFFIXES)
            faults.append(Fault(BAD_NAME, path, f"{path}: images must be {allowed}; convert it or move it away"))
        elif suffix in IMAGE_SUFFIXES and path.stem in images:
            other = images[path.stem].name
            faults.append(Fault(DUPLICATE_NAME, path, f"{path}: the same name as {other}; keep one of the two"))
        elif suffix in IMAGE_SUFFIXES:
            images[path.stem] = path
    return images, faults


def list_identity_folders(folder: Path) -> tuple[list[Path], list[Fault]]:
    """The folders of a split that has one folder per identity, sorted; their names must be digits."""
    entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    good = [entry for entry in entries if re.fullmatch(r"[0-9]+", entry.name)]
    faults = [
        Fault(BAD_NAME, entry, f"{entry}: the name of an identity folder must be digits; rename it or move it away")
        for entry in entries
        if entry not in good
    ]
    return good, faults
