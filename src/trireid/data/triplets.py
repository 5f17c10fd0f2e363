"""Match images of parallel folders by file name: `<split>/{RGB,NI,TI}/` or `<split>/<id>/{vis,ni,th}/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from trireid.data.listing import (
    BAD_NAME,
    EMPTY_FOLDER,
    MISSING_MODALITY,
    MISSING_SPLIT,
    NameFields,
    SplitRead,
    list_identity_folders,
    list_images,
)
from trireid.data.records import Fault, ImageSource, Record

IDENTITY_SUBFOLDERS = ("vis", "ni", "th")


def missing_split(root: Path, name: str) -> Fault:
    """The fault of a missing split folder, with a hint if a subfolder of the root holds it."""
    folder = root / name
    if not root.is_dir():
        advice = "set data.root to the folder of the data set"
        return Fault(MISSING_SPLIT, root, f"{root}: no such folder; {advice}")
    children = sorted(child for child in root.iterdir() if child.is_dir() and (child / name).is_dir())
    hint = (
        f"; {children[0]} holds it: set data.root to that folder" if children else "; check data.root and data.format"
    )
    return Fault(MISSING_SPLIT, folder, f"{folder}: the split folder is missing{hint}")


def read_identity_split(
    root: Path,
    name: str,
    *,
    parse: Callable[[str, str], NameFields | None],
    pattern: str,
    strict: bool,
    prefixed: bool,
) -> SplitRead:
    """Read a split that has one folder per identity, each with `vis`, `ni` and `th`.

    Args:
        root: folder of the data set.
        name: the split's folder below the root.
        parse: (identity folder, stem) -> fields; None if the name is not valid.
        pattern: an example of a valid name, for messages.
        strict: a missing file is a fault; otherwise the modality is None.
        prefixed: put the identity before each record's name, because file names alone are not unique.
    """
    if not (root / name).is_dir():
        return (), [missing_split(root, name)]
    identities, faults = list_identity_folders(root / name)
    records: list[Record] = []
    for folder in identities:
        found, wrong = read_triplets(
            [folder / modality for modality in IDENTITY_SUBFOLDERS],
            parse=partial(parse, folder.name),
            pattern=pattern,
            strict=strict,
            prefix=f"{folder.name}/" if prefixed else "",
        )
        if not found and not wrong:
            allowed = ", ".join(IDENTITY_SUBFOLDERS)
            wrong = [Fault(EMPTY_FOLDER, folder, f"{folder}: no image in {allowed}; remove the folder or restore it")]
        records.extend(found)
        faults.extend(wrong)
    return tuple(sorted(records, key=lambda record: record.name)), faults


def read_triplets(
    folders: Sequence[Path],
    *,
    parse: Callable[[str], NameFields | None],
    pattern: str,
    strict: bool,
    prefix: str = "",
) -> tuple[list[Record], list[Fault]]:
    """Records of the images that have the same stem in three parallel folders, in the order of `MODALITIES`.

    Args:
        folders: one folder per modality; a missing folder counts as empty.
        parse: stem -> fields; None if the name is not valid.
        pattern: an example of a valid name, for messages.
        strict: a missing file is a fault; otherwise the modality is None.
        prefix: text before each stem that makes the record's name unique in its split.
    """
    listings: list[dict[str, Path]] = []
    faults: list[Fault] = []
    for folder in folders:
        images, found = list_images(folder) if folder.is_dir() else ({}, [])
        listings.append(images)
        faults.extend(found)
    records: list[Record] = []
    for stem in sorted(set().union(*listings)):
        paths = [listing.get(stem) for listing in listings]
        first = next(path for path in paths if path is not None)
        fields = parse(stem)
        if fields is None:
            faults.append(
                Fault(BAD_NAME, first, f"{first}: the name must be like {pattern}; rename it or move it away")
            )
            continue
        missing = [folder / first.name for folder, path in zip(folders, paths, strict=True) if path is None]
        if missing and strict:
            faults.extend(_missing_modality(path, first) for path in missing)
            continue
        sources = tuple(None if path is None else ImageSource(path) for path in paths)
        records.append(Record(prefix + stem, sources, fields.identity, fields.camera, fields.scene))
    return records, faults


def _missing_modality(path: Path, present: Path) -> Fault:
    return Fault(MISSING_MODALITY, path, f"{path}: missing, although {present} exists; restore the file")
