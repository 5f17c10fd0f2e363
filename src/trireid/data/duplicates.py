"""One image under several names: files that are the same file, and files that hold the same bytes."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from trireid.data.consistency import ItemKey, item_key, record_path
from trireid.data.listing import COPIED_IMAGE, SHARED_IMAGE, SplitRecords, is_file
from trireid.data.records import Fault, ImageSource, Record
from trireid.errors import printable
from trireid.types import MODALITIES

Content = Hashable
"""What is equal for two images that are the same."""

NUM_SHOWN = 3


def shared_images(splits: SplitRecords) -> tuple[SplitRecords, list[Fault]]:
    """Leave out the triplets of files that are several spectra or several identities at once, with a fault a file.

    Links count as the file they lead to. Nothing is read.
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
    return _without(splits, bad), sorted(faults, key=lambda fault: fault.message)


def copied_triplets(splits: SplitRecords) -> tuple[SplitRecords, list[Fault], list[str]]:
    """Leave out triplets of several identities whose images are the same bytes, and say of the others what is a copy.

    Every file whose size another one has is read.

    Returns:
        the splits, a fault for each group, and notes: copies within an identity, which rank as one item, and single
        images that several identities have.
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
                f"{paths}: the same bytes are {_several('identity', 'identities', identities)}; "
                "keep one of the triplets, of the identity that it shows"
            )
            faults.append(Fault(COPIED_IMAGE, record_path(group[0]), message))
            bad |= set(group)
        else:
            num_copies += len({item_key(record) for record in group}) - 1
    notes = []
    if num_copies:
        notes.append(
            f"{num_copies} triplets hold the same bytes as another one of their identity under another name: in a "
            "ranking they count as that item itself, in training they are seen more often"
        )
    strange = sum(len(identities) > 1 for identities in single.values())
    if strange and not faults:
        notes.append(
            f"{strange} images hold the same bytes under several identities (placeholders of an absent modality? "
            "leave it out instead: an empty cell, no file)"
        )
    return _without(splits, bad), sorted(faults, key=lambda fault: fault.message), notes


def same_items(records: Iterable[Record]) -> dict[ItemKey, ItemKey]:
    """Which items are one and the same, by the first of them; items that are like no other stand for themselves.

    Two triplets of one identity are one item where they share an image, by its file or its bytes, and every spectrum
    that both have is the same: a copy in another folder, or the same triplet with less in it.
    """
    groups: dict[str, dict[ItemKey, Record]] = defaultdict(dict)
    for record in records:
        groups[record.identity].setdefault(item_key(record), record)
    leader: dict[ItemKey, ItemKey] = {}
    for group in groups.values():
        leader |= _same_of_identity(group)
    return leader


def _same_of_identity(group: dict[ItemKey, Record]) -> dict[ItemKey, ItemKey]:
    """As `same_items`. Items join the first fuller one that they agree with, never each other through a third.

    A chain would make one item of all that share an image with a triplet of a single spectrum.
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
    """What is equal for images of one content; only files whose size another one has are read."""
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
    """Which file a path leads to, looked up once: device and number of its node, or the path where there is none."""

    def __init__(self) -> None:
        self._found: dict[Path, tuple[Hashable, int]] = {}

    def _look_up(self, path: Path) -> tuple[Hashable, int]:
        if path not in self._found:
            try:
                status = path.stat()
                self._found[path] = (status.st_dev, status.st_ino), status.st_size
            except (OSError, ValueError):  # decoding says what is wrong with it
                self._found[path] = str(path), 0
        return self._found[path]

    def file(self, path: Path) -> Hashable:
        return self._look_up(path)[0]

    def size(self, path: Path) -> int:
        return self._look_up(path)[1]

    def of(self, source: ImageSource) -> Content:
        return self.file(source.path), source.columns


def _digest(path: Path) -> bytes | None:
    """A hash of a file's bytes, None where it is no regular file or cannot be read."""
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
        f"{path}: one file is {' and '.join(what)} (triplets {', '.join(names[:NUM_SHOWN])}{more}); "
        "give each its own image, and leave a spectrum that was not recorded out"
    )
    return Fault(SHARED_IMAGE, path, message)


def _several(one: str, many: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return (
        f"{many if len(names) > 1 else one} {', '.join(printable(name, limit=60) for name in names[:NUM_SHOWN])}{more}"
    )


def _without(splits: SplitRecords, bad: set[Record]) -> SplitRecords:
    """The splits without some records; one set that is query and gallery at once stays one."""
    if not bad:
        return splits

    def keep(records: tuple[Record, ...]) -> tuple[Record, ...]:
        return tuple(record for record in records if record not in bad)

    gallery = keep(splits.gallery)
    query = gallery if splits.query is splits.gallery else keep(splits.query)
    return replace(splits, train=keep(splits.train), query=query, gallery=gallery)
