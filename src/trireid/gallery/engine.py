"""The rows of a gallery in Milvus: Milvus Lite in a folder, or a Milvus server, by the same client (`connection.py`).

A gallery is two collections: `NAME` with one row for each item, and `NAME_about` with its description. Only what
Milvus 2.3 has is used, so that older servers serve as well: no nullable fields, no second vector field, no sparse
index. The one vector field is searched by brute force (FLAT, inner product), which is exact; `layout.py` says what
lies in it.

- Writes to one collection are serialised by a lock. Lite syncs its log when it is flushed, so every write flushes; a
  server keeps its own log and limits the rate of flushes.
- The first read after the opening and after a write is of consistency `Strong`: it sees all that was written before.
  Others are of `Session`, and see what other processes wrote within a moment: `Strong` lets a read of a server wait
  for its clock, about 0.2 s.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trireid.errors import InputError
from trireid.gallery.connection import LOADING_SECONDS, Connection
from trireid.gallery.filters import among, both, literal, presence_in
from trireid.gallery.layout import CODES
from trireid.gallery.rows import LENGTHS, Row

COLUMNS = ("key", "identity", "camera", "scene", "time", "presence", "details")
LARGEST_LIMIT = 16_384
"""Results of one search that Milvus gives at most."""
WIDEST = 32_768
"""Numbers of one vector that Milvus takes at most."""
_BATCH_BYTES = 8 * 2**20
"""Of the vectors of one call; servers take messages of 64 MB."""
_BATCH_ROWS = 1000
_KEPT_BYTES = 64 * 2**20
"""Of the vectors that are kept in memory, since Lite takes longer to hand over a vector than to find it."""
_PIECE = 60_000
"""Characters of a text that one row of the description holds."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search: an item and the inner product, in float32 as the engine computes it."""

    key: str
    identity: str
    camera: str
    scene: str
    score: float


class Engine:
    """The rows of one gallery.

    Args:
        location: a folder, or `http://host:port`.
        name: of the gallery.
        lock: of the folder, where the caller has it: the engine holds it from now on.

    Attributes:
        depths: how many hits the last searches for a number of identities needed: where the next one begins.
    """

    def __init__(self, location: str | Path, name: str, *, lock: ExitStack | None = None) -> None:
        self.location, self.name = str(location), name
        self._about = f"{name}_about"
        self._writing = threading.RLock()
        self._client = Connection(self.location, lock=lock)
        self.embedded = self._client.embedded
        self._written, self._seen = Counter({self.name: 1, self._about: 1}), Counter[str]()
        self._codes: tuple[int, tuple[int, ...]] = (0, ())
        self._kept = _Kept(0)
        self.depths: dict[int, deque[int]] = {}

    @contextmanager
    def _reading(self, name: str) -> Iterator[str]:
        """Give the consistency level of a read: the first one after a write waits until the server knows the write."""
        version = self._written[name]
        with self._client.reporting():
            yield "Session" if version == self._seen[name] else "Strong"
        self._seen[name] = version

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One writer at a time; what was read before is not used after it, also where it fails."""
        with self._writing, self._client.reporting():
            try:
                yield
            finally:
                self._written[self.name] += 1

    def _flush(self, name: str) -> None:
        """After a write: make it safe against the end of this process, and let the next read wait for it."""
        self._written[name] += 1
        if self.embedded:
            self._client.flush(name)

    def close(self) -> None:
        """Let go of the folder or the connection; what was written stays."""
        with self._writing:
            self._client.close()

    # The collections

    def exists(self) -> bool:
        """Whether there is a gallery of this name."""
        with self._client.reporting():
            return bool(self._client.has_collection(self._about)) and bool(self._client.has_collection(self.name))

    def names(self) -> list[str]:
        """All galleries at this location."""
        with self._client.reporting():
            found = set(self._client.list_collections())
        return sorted(name for name in found if f"{name}_about" in found)

    def create(self, width: int, about: str) -> None:
        """Make an empty gallery for rows of a width; its description is written last and makes it one."""
        from pymilvus import DataType

        if width > WIDEST:
            raise InputError(
                f"one item would take {width:,} numbers, the engine holds {WIDEST:,} at most: choose a narrower "
                "feature (global or head), or partial=False"
            )
        texts = {name: DataType.VARCHAR for name in LENGTHS}
        self._create(self.name, {**texts, "time": DataType.DOUBLE, "presence": DataType.INT8}, "key", width)
        self._create(self._about, {"part": DataType.VARCHAR, "text": DataType.VARCHAR}, "part", 2)
        self.write_text("about", about)

    def _create(self, name: str, columns: dict[str, Any], primary: str, width: int) -> None:
        from pymilvus import DataType

        with self._writing, self._client.reporting():
            if self._client.has_collection(name):  # what a broken creation left
                self._client.drop_collection(name)
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            for column, kind in columns.items():
                size = {"max_length": LENGTHS.get(column, 65_000)} if kind == DataType.VARCHAR else {}
                schema.add_field(column, kind, is_primary=column == primary, **size)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
            index = self._client.prepare_index_params()
            index.add_index("vector", index_type="FLAT", metric_type="IP")
            self._client.create_collection(name, schema=schema, consistency_level="Session")
            self._client.create_index(name, index, sync=False)  # otherwise it sleeps for half a second
            self._client.load_collection(name)

    def load(self) -> None:
        """Make a gallery that exists ready for reading, and see to it that each of its rows is there once."""
        with self._client.reporting():
            for name in (self.name, self._about):
                self._client.load_collection(name, timeout=None if self._client.embedded else LOADING_SECONDS)
        if self._client.interrupted:
            self._write_doubled_rows_again(self.name, "key")
            self._write_doubled_rows_again(self._about, "part")
            self._client.interrupted = False

    def _write_doubled_rows_again(self, name: str, primary: str) -> None:
        """Rows that Lite has twice since it was killed (see `connection.py`); a new one takes the place of both."""
        with self._writing, self._client.reporting():
            found = self._client.query(name, filter=f'{primary} != ""', output_fields=[primary])
            counts = Counter(row[primary] for row in found)
            doubled = sorted(key for key, count in counts.items() if count > 1)
            for start in range(0, len(doubled), _BATCH_ROWS):
                expression = among(primary, doubled[start : start + _BATCH_ROWS])
                rows = self._client.query(name, filter=expression, output_fields=["*"])
                self._client.upsert(name, list({row[primary]: dict(row) for row in rows}.values()))
            if doubled:
                self._client.flush(name)

    def drop(self) -> None:
        """Remove the gallery with all its items; its description goes first."""
        with self._writing, self._client.reporting():
            for name in (self._about, self.name):
                if self._client.has_collection(name):
                    self._client.drop_collection(name)

    # Texts of the description

    def write_text(self, name: str, text: str) -> None:
        """Keep a text under a name: its pieces, then, last, the row that counts them."""
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        version = hashlib.sha256(text.encode()).hexdigest()[:16]
        rows = [
            {"part": f"{name}/{version}/{number}", "text": piece, "vector": [0.0, 1.0]}
            for number, piece in enumerate(pieces)
        ]
        with self._writing, self._client.reporting():
            before = self._pointer(name)
            if len(pieces) > 1:
                self._client.upsert(self._about, rows)
            first = {"part": name, "text": f"{len(pieces)} {version}" if len(pieces) > 1 else f"= {text}"}
            self._client.upsert(self._about, [{**first, "vector": [0.0, 1.0]}])
            self._flush(self._about)
            if before is not None and not before.startswith("= ") and before != first["text"]:
                self._client.delete(self._about, filter=among("part", _pieces(name, before)))

    def read_text(self, name: str) -> str | None:
        """A text that was kept, None where there is none."""
        with self._client.reporting():
            first = self._pointer(name)
            if first is None or first.startswith("= "):
                return None if first is None else first[2:]
            parts = _pieces(name, first)
            found = self._query(self._about, among("part", parts), ["part", "text"])
        texts = {row["part"]: row["text"] for row in found}
        return "".join(texts[part] for part in parts)

    def _pointer(self, name: str) -> str | None:
        found = self._query(self._about, f"part == {literal(name)}", ["text"])
        return None if not found else str(found[0]["text"])

    # Items

    def upsert(self, rows: Sequence[Row], vectors: NDArray[np.float32], *, flush: bool = True) -> None:
        """Write rows; a row whose key is there already takes its place. Without `flush`, the caller flushes."""
        step = self.page_size(vectors.shape[1])
        with self._changing():
            for start in range(0, len(rows), step):
                some = slice(start, start + step)
                content = [{**row, "vector": vector} for row, vector in zip(rows[some], vectors[some], strict=True)]
                self._client.upsert(self.name, content)
            if flush:
                self._flush(self.name)

    def flush(self) -> None:
        """Make what was written safe against the end of this process."""
        with self._writing, self._client.reporting():
            self._flush(self.name)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove items."""
        with self._changing():
            for start in range(0, len(keys), _BATCH_ROWS):
                self._client.delete(self.name, filter=among("key", keys[start : start + _BATCH_ROWS]))
            self._flush(self.name)

    def page_size(self, width: int) -> int:
        """Rows with their vectors that are read or written at a time."""
        return int(min(_BATCH_ROWS, max(1, _BATCH_BYTES // (4 * width))))

    def page(self, where: str, after: str | None, limit: int, *, vectors: bool = False) -> list[Row]:
        """Items that fulfil an expression, in the order of their keys, after a key."""
        past = "" if after is None else f"key > {literal(after)}"
        columns = [*COLUMNS, "vector"] if vectors else list(COLUMNS)
        everything = both(where, past) or 'key != ""'
        # Servers give the first keys. Lite does so for iterators only, to which servers give what may be outdated.
        ordered = {"iterator": "True"} if self.embedded else {}
        found = self._query(self.name, everything, columns, limit=limit, **ordered)
        return sorted((_row(each) for each in found), key=lambda row: row["key"].encode())

    def scan(self, where: str, width: int | None = None) -> Iterator[list[Row]]:
        """All items that fulfil an expression, in pages; with their vectors where their width is given."""
        size = _BATCH_ROWS if width is None else self.page_size(width)
        after: str | None = None
        while rows := self.page(where, after, size, vectors=width is not None):
            yield rows
            after = rows[-1]["key"]

    def fetch(self, keys: Sequence[str], *, width: int | None = None) -> dict[str, Row]:
        """Items by key; those that are not there are left out."""
        size = _BATCH_ROWS if width is None else self.page_size(width)
        columns = [*COLUMNS, "vector"] if width is not None else list(COLUMNS)
        rows: dict[str, Row] = {}
        for start in range(0, len(keys), size):
            found = self._query(self.name, among("key", keys[start : start + size]), columns)
            rows.update({each["key"]: _row(each) for each in found})
        return rows

    def recall(self, keys: Sequence[str], width: int) -> dict[str, Row]:
        """As `fetch` with vectors; those of a folder, which no other process changes, are kept until the next write."""
        if not self.embedded:
            return self.fetch(keys, width=width)
        kept, version = self._kept, self._written[self.name]
        if kept.version != version:  # who still reads for an earlier version keeps it where nobody looks any more
            self._kept = kept = _Kept(version)
        rows = kept.find(keys)
        more = self.fetch([key for key in keys if key not in rows], width=width)
        kept.keep(more)
        return rows | more

    def count(self, where: str) -> int:
        """How many items fulfil an expression."""
        return int(self._query(self.name, where, ["count(*)"])[0]["count(*)"])

    def codes(self) -> tuple[int, ...]:
        """The presences that its items may have: a search of each takes time, also where there are none."""
        if not self.embedded:
            return CODES  # other processes may write any
        version = self._written[self.name]
        if self._codes[0] != version:
            self._codes = version, tuple(code for code in CODES if self.count(presence_in([code])))
        return self._codes[1]

    def _query(self, name: str, where: str, columns: list[str], **options: Any) -> list[dict[str, Any]]:
        with self._reading(name) as level:
            found = self._client.query(name, filter=where, output_fields=columns, consistency_level=level, **options)
        return list(found)

    def search(self, probes: NDArray[np.float32], where: str, limit: int) -> list[list[Hit]]:
        """For each probe the items of the largest inner products that fulfil an expression, best first."""
        fields = ["key", "identity", "camera", "scene"]
        with self._reading(self.name) as level:
            found = self._client.search(
                self.name,
                data=list(probes),
                anns_field="vector",
                filter=where,
                limit=limit,
                output_fields=fields,
                consistency_level=level,
                search_params={"metric_type": "IP", "params": {}},
            )
        return [
            [Hit(**{name: each["entity"][name] for name in fields}, score=float(each["distance"])) for each in hits]
            for hits in found
        ]

    def search_all(self, probes: NDArray[np.float32], where: str) -> list[list[Hit]]:
        """As `search`, of all items, however many: they are searched in ranges of their keys."""
        if self.count(where) <= LARGEST_LIMIT:
            return self.search(probes, where, LARGEST_LIMIT)
        found: list[list[Hit]] = [[] for _ in probes]
        ends = [page[-1]["key"] for page in self.scan(where)]
        step = LARGEST_LIMIT // _BATCH_ROWS
        bounds = [None, *ends[step - 1 : -1 : step], None]
        for low, high in pairwise(bounds):
            above = "" if low is None else f"key > {literal(low)}"
            below = "" if high is None else f"key <= {literal(high)}"
            for hits, more in zip(found, self.search(probes, both(where, above, below), LARGEST_LIMIT), strict=True):
                hits += more
        return [sorted(hits, key=lambda hit: -hit.score) for hits in found]


class _Kept:
    """Rows as they were in one version of the gallery."""

    def __init__(self, version: int) -> None:
        self.version = version
        self._rows: dict[str, Row] = {}
        self._bytes = 0

    def find(self, keys: Sequence[str]) -> dict[str, Row]:
        """Those of some keys that are kept."""
        rows = self._rows
        return {key: row for key in keys if (row := rows.get(key)) is not None}

    def keep(self, rows: dict[str, Row]) -> None:
        """Keep some more, and no others where they become too many."""
        size = sum(row["vector"].nbytes + 4 * len(row["details"]) for row in rows.values())
        if self._bytes + size > _KEPT_BYTES:
            self._rows, self._bytes = {}, 0
        if size <= _KEPT_BYTES:
            self._rows.update(rows)
            self._bytes += size


def _row(found: dict[str, Any]) -> Row:
    row = dict(found)
    if "vector" in row:
        row["vector"] = np.asarray(row["vector"], dtype=np.float32)
    return row


def _pieces(name: str, pointer: str) -> list[str]:
    count, version = pointer.split(" ")
    return [f"{name}/{version}/{number}" for number in range(int(count))]
