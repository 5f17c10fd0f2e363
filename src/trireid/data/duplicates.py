"""One image under several names: files that are the same file, and files that hold the same bytes."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from trireid.data.consistency import ItemKey, item_key, record_path
from trireid.data.listing import COPIED_IMAGE, SHARED_IMAGE, SplitRecords, is_file
from trireid.data.records import Fault, ImageSource, Record
from trireid.errors import printable
from trireid.types import MODALITIES

Content = Hashable
"""A key that is equal for identical images."""

NUM_SHOWN = 3


def shared_images(splits: SplitRecords) -> tuple[SplitRecords, list[Fault]]:
    """Remove triplets whose file stands for several spectra or several identities, with one fault per file.

    A link counts as the file it leads to. No file content is read.
    """
    records = tuple(dict.fromkeys((*splits.train, *splits.query, *splits.gallery)))
    uses: dict[Content, list[tuple[int, Record]]] = defaultdict(list)
    identity = _FileKeys()
    for record in records:
        for modality, source in enumerate(record.images):
            if source is not None:
                uses[identity.of(source)].append((modality, record))
    faults, bad = [], set()
    for users in uses.values():
        modalities = sorted({modality for modality, _ in users})
        identities = sorted({record.identity for _, record in users})
        if len(modalities) > 1 or len(identities) > 1:
            faults.append(_shared_fault(users, modalities, identities))
            bad |= {record for _, record in users}
    return splits.filtered(lambda record: record not in bad), sorted(faults, key=lambda fault: fault.message)


def copied_triplets(splits: SplitRecords) -> tuple[SplitRecords, list[Fault], list[str]]:
    """Remove triplets whose images are identical under several identities, and report other copies.

    Files are compared by their bytes; a file is read only if another one has the same size.

    Returns:
        The splits; a fault for each group; and notes on copies within an identity, which rank as one item, and on
        single images that several identities share.
    """
    records = tuple(dict.fromkeys((*splits.train, *splits.query, *splits.gallery)))
    contents = image_contents(source for record in records for source in record.images)
    whole: dict[Content, list[Record]] = defaultdict(list)
    single: dict[Content, set[str]] = defaultdict(set)
    for record in records:
        seen = tuple(None if source is None else contents[source] for source in record.images)
        whole[seen].append(record)
        for modality, content in enumerate(seen):
            if content is not None:
                single[modality, content].add(record.identity)
    faults, bad, num_copies = [], set(), 0
    for group in whole.values():
        identities = sorted({record.identity for record in group})
        if len(identities) > 1:
            first = {record.identity: record for record in reversed(group)}
            paths = ", ".join(printable(str(record_path(first[name])), limit=200) for name in identities[:NUM_SHOWN])
            message = (
                f"{paths}: the same bytes are used for {_several('identity', 'identities', identities)}; "
                "keep only the triplet whose identity is right"
            )
            faults.append(Fault(COPIED_IMAGE, record_path(group[0]), message))
            bad |= set(group)
        else:
            num_copies += len({item_key(record) for record in group}) - 1
    notes = []
    if num_copies:
        notes.append(
            f"{num_copies} triplets hold the same bytes as another triplet of their identity: a ranking treats them as "
            "one item, and training sees them more often"
        )
    strange = sum(len(identities) > 1 for identities in single.values())
    if strange and not faults:
        notes.append(
            f"{strange} images hold the same bytes under several identities; if they are placeholders of an "
            "absent modality, leave it out instead (an empty cell, no file)"
        )
    return splits.filtered(lambda record: record not in bad), sorted(faults, key=lambda fault: fault.message), notes


def same_items(records: Iterable[Record]) -> dict[ItemKey, ItemKey]:
    """Map each item to the first item that is the same; an item without a copy maps to itself.

    Two triplets of one identity are the same item if they share an image (the same file or the same bytes) and agree
    in every spectrum that both have: a copy in another folder, or the same triplet with fewer images.
    """
    groups: dict[str, dict[ItemKey, Record]] = defaultdict(dict)
    for record in records:
        groups[record.identity].setdefault(item_key(record), record)
    leader: dict[ItemKey, ItemKey] = {}
    for group in groups.values():
        leader |= _same_of_identity(group)
    return leader


def _same_of_identity(group: dict[ItemKey, Record]) -> dict[ItemKey, ItemKey]:
    """`same_items` within one identity. An item joins the first fuller item that it agrees with; joins are not chained.

    With chains, a triplet of a single spectrum would merge all items that share its image.
    """
    contents = image_contents(source for record in group.values() for source in record.images)
    seen = {
        key: tuple(None if source is None else contents[source] for source in record.images)
        for key, record in group.items()
    }
    leaders: dict[tuple[int, Content], list[ItemKey]] = defaultdict(list)
    found: dict[ItemKey, ItemKey] = {}
    for key in sorted(group, key=lambda each: seen[each].count(None)):  # those with most images first
        own = [(modality, content) for modality, content in enumerate(seen[key]) if content is not None]
        candidates = (other for each in own for other in leaders[each])
        found[key] = next((other for other in candidates if _agree(seen[other], seen[key])), key)
        if found[key] == key:
            for each in own:
                leaders[each].append(key)
    return found


def _agree(one: Sequence[Content], other: Sequence[Content]) -> bool:
    """Whether every spectrum that both have is the same."""
    return all(a == b for a, b in zip(one, other, strict=True) if a is not None and b is not None)


def image_contents(sources: Iterable[ImageSource | None]) -> dict[ImageSource, Content]:
    """A key for each image, equal for equal content; a file is read only if another one has the same size."""
    identity = _FileKeys()
    known = {source: identity.of(source) for source in sources if source is not None}
    paths = {identity.file(source.path): source.path for source in known}
    sizes = Counter(identity.size(path) for path in paths.values())
    digests = {
        file: _digest(path)
        for file, path in paths.items()
        if identity.size(path) > 0 and sizes[identity.size(path)] > 1
    }
    return {
        source: (digests.get(identity.file(source.path)) or identity.file(source.path), source.columns)
        for source in known
    }


class _FileKeys:
    """The file behind a path, looked up once: its device and inode number, or the path if there is no file."""

    def __init__(self) -> None:
        self._found: dict[Path, tuple[Hashable, int]] = {}

    def _look_up(self, path: Path) -> tuple[Hashable, int]:
        if path not in self._found:
            try:
                status = path.stat()
                self._found[path] = (status.st_dev, status.st_ino), status.st_size
            except (OSError, ValueError):  # decoding reports the fault
                self._found[path] = str(path), 0
        return self._found[path]

    def file(self, path: Path) -> Hashable:
        return self._look_up(path)[0]

    def size(self, path: Path) -> int:
        return self._look_up(path)[1]

    def of(self, source: ImageSource) -> Content:
        return self.file(source.path), source.columns


def _digest(path: Path) -> bytes | None:
    """A hash of a file's bytes, None if it is not a regular file or cannot be read."""
    if not is_file(path):
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None


def _shared_fault(users: Sequence[tuple[int, Record]], modalities: Sequence[int], identities: Sequence[str]) -> Fault:
    record = users[0][1]
    source = record.images[users[0][0]]
    path = record_path(record) if source is None else source.path
    what = []
    if len(modalities) > 1:
        what.append(" and ".join(MODALITIES[modality] for modality in modalities))
    if len(identities) > 1:
        what.append(_several("identity", "identities", identities))
    names = list(dict.fromkeys(printable(record.name, limit=60) for _, record in users))
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    message = (
        f"{path}: one file is used for {' and '.join(what)} (triplets {', '.join(names[:NUM_SHOWN])}{more}); "
        "give each its own image, and leave out a spectrum that was not recorded"
    )
    return Fault(SHARED_IMAGE, path, message)


def _several(one: str, many: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return (
        f"{many if len(names) > 1 else one} {', '.join(printable(name, limit=60) for name in names[:NUM_SHOWN])}{more}"
    )
