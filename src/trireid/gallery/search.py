"""The nearest items of a gallery, exactly: one search for each presence, merged by the distance of `docs/missing.md`.

Within one pair of presences the engine's order, by cosine, is that of the distance. Each presence's list is read as
deep as is needed: the *frontier* of a query is the smallest distance that an item which was not read yet can have, and
reading ends when the answer lies before it. The engine computes in float32; its scores only choose candidates, with
a margin of `ERROR` on both sides of the last one. Distances and the order come from the stored vectors, in float64.
Queries of one presence and one expression share the calls of the engine: a call costs more than a row.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trireid.gallery.engine import LARGEST_LIMIT, Engine, Hit
from trireid.gallery.filters import both, presence_in
from trireid.gallery.layout import CODES, Layout, names_of, weighed
from trireid.gallery.rows import Row

Answer = TypeVar("Answer")

ERROR = 1e-5
"""Of a cosine that the engine computes: an inner product of unit vectors in float32, over at most 32,768 numbers."""
MANY = 5000
"""Items that are compared one by one without a note in the log."""
_log = logging.getLogger(__name__)
QUERIES, FEW_QUERIES = 64, 8
"""That are searched in one call; few, where each reads all items."""


@dataclass(frozen=True)
class Probe:
    """One query.

    Attributes:
        feature: `(D,)` float64.
        code: of its presence.
        where: expression of the items that it may find.
        hides: says of a hit or row whether the query must not see it.
    """

    feature: NDArray[np.float64]
    code: int
    where: str
    hides: Callable[[Hit | Row], bool]


@dataclass(frozen=True)
class Found:
    """One item that was found: its row, its distance and its squared distance over the shared blocks, if any."""

    row: Row
    distance: float
    square: float | None


Candidate = tuple[float, Hit, int]
"""What was read of an item: the squared distance, as estimated, the hit and its presence."""


@dataclass
class _List:
    """What was read of one presence for one query."""

    code: int
    weight: float
    limit: int = 0
    hits: list[Hit] = field(default_factory=list)
    is_whole: bool = False


@dataclass
class _Reading:
    """One query whose lists are being read."""

    probe: Probe
    lists: list[_List]
    unrelated: float

    def estimate(self, read: _List, hit: Hit) -> float:
        """The squared distance of a hit, within 2 `ERROR`."""
        return weighed(2.0 - 2.0 * hit.score, read.weight, self.unrelated)

    def frontier(self) -> float:
        """The smallest squared distance, as estimated, of an item that was not read."""
        ends = [self.estimate(read, read.hits[-1]) if read.hits else 0.0 for read in self.lists if not read.is_whole]
        return min(ends, default=np.inf)

    def candidates(self) -> list[Candidate]:
        """What was read and may be seen: estimate, hit and presence, nearest first."""
        seen = [
            (self.estimate(read, hit), hit, read.code)
            for read in self.lists
            for hit in read.hits
            if not self.probe.hides(hit)
        ]
        return sorted(seen, key=lambda each: each[0])

    def needed(self, last: float) -> int:
        """How deep the deepest list was needed to come to an estimate."""
        return max(sum(self.estimate(read, hit) <= last for hit in read.hits) for read in self.lists)

    def shallow(self) -> list[_List]:
        """The lists that keep the frontier where it is."""
        edge = self.frontier() + 4 * ERROR
        return [
            read
            for read in self.lists
            if not read.is_whole and (not read.hits or self.estimate(read, read.hits[-1]) <= edge)
        ]


class Searcher:
    """Searches one gallery.

    Args:
        engine: its rows.
        layout: how features lie in them.
        unrelated: cosine of unrelated items.
    """

    def __init__(self, engine: Engine, layout: Layout, unrelated: float) -> None:
        self._engine, self._layout, self._unrelated = engine, layout, unrelated

    def items(self, probes: Sequence[Probe], top: int) -> list[list[Found]]:
        """The `top` nearest items of each query; those without a shared block last, by key."""
        depth = min(max(top + 8, 16), LARGEST_LIMIT)
        return self._each(
            probes,
            depth,
            QUERIES,
            lambda reading: _near_items(reading, top),
            lambda probe, found: self._nearest(probe, found, top),
        )

    def identities(self, probes: Sequence[Probe], top: int, *, mean: bool) -> list[list[tuple[float, Found]]]:
        """The `top` nearest identities of each query: distance of the identity, and its nearest item."""
        if mean:
            return self._each(
                probes,
                LARGEST_LIMIT + 1,
                FEW_QUERIES,
                lambda reading: _near_by_mean(reading, top),
                lambda _, found: _by_mean(found, top),
            )
        depths = self._engine.depths.setdefault(top, deque(maxlen=QUERIES))
        depth = max(tuple(depths)) * 5 // 4 + 4 if depths else max(4 * top, 16)

        def near(reading: _Reading) -> list[Candidate] | None:
            found = _near_by_best(reading, top)
            if found is not None and len(found) >= top:
                depths.append(reading.needed(found[-1][0]))
            return found

        return self._each(probes, min(depth, LARGEST_LIMIT), QUERIES, near, lambda _, found: _by_best(found, top))

    def _each(
        self,
        probes: Sequence[Probe],
        depth: int,
        together: int,
        choose: Callable[[_Reading], list[Candidate] | None],
        rank: Callable[[Probe, list[Found]], Answer],
    ) -> list[Answer]:
        """Answer queries, those of like expressions together.

        Lists are read, first to a depth, until `choose` names what can be in the answer; `rank` orders it exactly.
        """
        answers: dict[int, Answer] = {}
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for number, probe in enumerate(probes):
            groups[probe.where, probe.code].append(number)
        for (_, code), members in groups.items():
            for start in range(0, len(members), together):
                some = {number: self._start(probes[number]) for number in members[start : start + together]}
                self._read(some.values(), code, depth)
                chosen: dict[int, list[str]] = {}
                while some:
                    for number, reading in some.items():
                        near = choose(reading)
                        if near is not None:
                            chosen[number] = [hit.key for _, hit, _ in near]
                    some = {number: reading for number, reading in some.items() if number not in chosen}
                    self._read(some.values(), code, 0)
                for number, rows in self._rows(chosen):
                    answers[number] = rank(probes[number], self._distances(probes[number], rows))
        return [answers[number] for number in range(len(probes))]

    def _start(self, probe: Probe) -> _Reading:
        shared = [code for code in self._engine.codes() if self._layout.shared(probe.code, code)]
        lists = [_List(code, self._layout.weight(probe.code, code)) for code in shared]
        return _Reading(probe, lists, self._unrelated)

    def _read(self, readings: Iterable[_Reading], code: int, first: int) -> None:
        """Read the lists that decide further: four times as deep, or to a first depth."""
        tasks: dict[tuple[int, int], list[tuple[_Reading, _List]]] = defaultdict(list)
        for reading in readings:
            for read in reading.shallow():
                deeper = LARGEST_LIMIT if read.limit < LARGEST_LIMIT < 4 * read.limit else 4 * read.limit
                tasks[read.code, first or deeper].append((reading, read))
        for (item, limit), members in tasks.items():
            features = np.stack([reading.probe.feature for reading, _ in members])
            where = both(members[0][0].probe.where, presence_in([item]))
            found = self._search(features, code, item, where, limit)
            for (_, read), hits in zip(members, found, strict=True):
                read.hits, read.limit, read.is_whole = hits, limit, len(hits) < limit or limit > LARGEST_LIMIT

    def _search(self, features: NDArray[np.float64], query: int, item: int, where: str, limit: int) -> list[list[Hit]]:
        """The best items of one presence for queries of one presence; beyond `LARGEST_LIMIT`, all of them."""
        if self._layout.shared(query, item) not in self._layout.parts(item):
            return self._scan(features, query, item, where, limit)
        probes = self._layout.probes(features, query, item)
        if limit > LARGEST_LIMIT:
            return self._engine.search_all(probes, where)
        return self._engine.search(probes, where, limit)

    def _scan(self, features: NDArray[np.float64], query: int, item: int, where: str, limit: int) -> list[list[Hit]]:
        """As `_search`, computed here from all items of the presence: the gallery holds them whole only."""
        found: list[list[Hit]] = [[] for _ in features]
        count = 0
        for rows in self._engine.scan(where, self._layout.row_width):
            count += len(rows)
            vectors = np.stack([row["vector"] for row in rows])
            for hits, feature in zip(found, features, strict=True):
                scores = 1.0 - self._layout.squares(feature, query, vectors, item) / 2.0
                hits += [_hit(row, float(score)) for row, score in zip(rows, scores, strict=True)]
                hits.sort(key=lambda hit: -hit.score)
                if limit <= LARGEST_LIMIT:
                    del hits[limit:]
        if count > MANY:
            _log.info(
                "queries with %s were compared with %d items one by one; a copy with --partial is faster",
                "+".join(names_of(query)),
                count,
            )
        return found

    # Exact distances

    def _rows(self, chosen: Mapping[int, list[str]]) -> Iterator[tuple[int, list[Row]]]:
        """The rows of the keys of each query; those of several queries are read at once, as many as fit into a page."""
        size = self._engine.page_size(self._layout.row_width)
        numbers, keys = list[int](), dict[str, None]()
        for place, (number, own) in enumerate(chosen.items(), start=1):
            numbers.append(number)
            keys.update(dict.fromkeys(own))
            if len(keys) >= size or place == len(chosen):
                rows = self._engine.recall(list(keys), self._layout.row_width)
                for each in numbers:
                    yield each, [rows[key] for key in chosen[each] if key in rows]
                numbers, keys = [], {}

    def _distances(self, probe: Probe, rows: Iterable[Row]) -> list[Found]:
        """Rows with their distances; those that share no block with the query are left out."""
        groups: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            groups[int(row["presence"])].append(row)
        found: list[Found] = []
        for code, members in groups.items():
            if not self._layout.shared(probe.code, code):
                continue
            vectors = np.stack([row["vector"] for row in members])
            squares = self._layout.squares(probe.feature, probe.code, vectors, code)
            weight = self._layout.weight(probe.code, code)
            for row, square in zip(members, squares, strict=True):
                distance = float(np.sqrt(weighed(float(square), weight, self._unrelated)))
                found.append(Found(row, distance, float(square)))
        return found

    def _nearest(self, probe: Probe, found: list[Found], top: int) -> list[Found]:
        nearest = sorted(found, key=lambda each: (each.distance, each.row["key"].encode()))[:top]
        return nearest if len(nearest) == top else nearest + self._unshared(probe, top - len(nearest))

    def _unshared(self, probe: Probe, count: int) -> list[Found]:
        """Items that share no block with a query, by key: nothing tells them apart."""
        apart = [code for code in CODES if not self._layout.shared(probe.code, code)]
        found: list[Found] = []
        if not apart:
            return found
        distance = float(np.sqrt(weighed(0.0, 0.0, self._unrelated)))
        for page in self._engine.scan(both(probe.where, presence_in(apart))):
            found += [Found(row, distance, None) for row in page if not probe.hides(row)]
            if len(found) >= count:
                break
        return found[:count]


def _hit(row: Row, score: float) -> Hit:
    return Hit(row["key"], row["identity"], row["camera"], row["scene"], score)


# What ends the reading: all that can be in the answer, once nothing that was not read can be


def _near_items(reading: _Reading, top: int) -> list[Candidate] | None:
    candidates = reading.candidates()
    last = candidates[top - 1][0] if len(candidates) >= top else np.inf
    if reading.frontier() <= last + 8 * ERROR and not _complete(reading):
        return None
    return [each for each in candidates if each[0] <= last + 8 * ERROR]


def _near_by_best(reading: _Reading, top: int) -> list[Candidate] | None:
    """Of each identity that is near enough what may be its nearest item."""
    candidates = [each for each in reading.candidates() if each[1].identity]
    best: dict[str, float] = {}
    for estimate, hit, _ in candidates:
        best.setdefault(hit.identity, estimate)
    last = list(best.values())[top - 1] if len(best) >= top else np.inf
    if reading.frontier() <= last + 8 * ERROR and not _complete(reading):
        return None
    return [
        each
        for each in candidates
        if best[each[1].identity] <= last + 8 * ERROR and each[0] <= best[each[1].identity] + 8 * ERROR
    ]


def _near_by_mean(reading: _Reading, top: int) -> list[Candidate] | None:
    """All items are read: an identity with one near item may be behind one whose items are all fairly near."""
    if not _complete(reading):
        return None
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for each in reading.candidates():
        if each[1].identity:
            groups[each[1].identity].append(each)
    estimates = {name: np.array([each[0] for each in items]) for name, items in groups.items()}
    latest = sorted(float(np.sqrt(np.maximum(some, 0.0) + 8 * ERROR).mean()) for some in estimates.values())[:top]
    near: list[Candidate] = []
    for name, some in estimates.items():
        if float(np.sqrt(np.maximum(some - 8 * ERROR, 0.0)).mean()) <= latest[-1]:
            near += groups[name]
    return near


def _complete(reading: _Reading) -> bool:
    return all(read.is_whole for read in reading.lists)


def _by_identity(found: Iterable[Found]) -> dict[str, list[Found]]:
    """Items by identity, nearest first; those without one are left out."""
    groups: dict[str, list[Found]] = defaultdict(list)
    for each in sorted(found, key=lambda each: (each.distance, each.row["key"].encode())):
        if each.row["identity"]:
            groups[each.row["identity"]].append(each)
    return groups


def _by_best(found: Iterable[Found], top: int) -> list[tuple[float, Found]]:
    return _first(((items[0].distance, items[0]) for items in _by_identity(found).values()), top)


def _by_mean(found: Iterable[Found], top: int) -> list[tuple[float, Found]]:
    items = _by_identity(found).values()
    return _first(((float(np.mean([each.distance for each in some])), some[0]) for some in items), top)


def _first(ranked: Iterable[tuple[float, Found]], top: int) -> list[tuple[float, Found]]:
    return sorted(ranked, key=lambda each: (each[0], each[1].row["identity"].encode()))[:top]
