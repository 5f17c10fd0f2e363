"""What is in a gallery, counted for browsing: identities, cameras, days, and items without an identity."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from trireid.embedding.items import Item
from trireid.serve.forms import date_text
from trireid.serve.service import Service

MOST_COUNTED = 5000
"""Items that are looked at; with more, counts are of the first ones, and pages say so."""
SECONDS = 10.0
"""After which counts are made anew."""
LAST_DAY = 253_370_764_800.0
"""9999-01-01: later days are not listed."""
MOST_CHOICES = 24
"""Cameras that a form lists."""
MOST_SUGGESTED = 500
"""Identities that a form suggests."""


@dataclass(frozen=True)
class Group:
    """Items that have one thing in common: how many, and the key of the first."""

    name: str
    count: int
    example: str


@dataclass(frozen=True)
class Overview:
    """The counts of one moment.

    Attributes:
        groups: by `identities`, `cameras` and `days`, in the order of names.
        unlabelled: keys of items without an identity.
        counted: items that were looked at.
        is_whole: whether these are all.
        presences: subsets of the model's modalities, as filters name them.
    """

    groups: dict[str, list[Group]]
    unlabelled: list[str]
    counted: int
    is_whole: bool
    presences: list[str]

    @property
    def cameras(self) -> list[str]:
        """Names of cameras, those that a form can list."""
        return [group.name for group in self.groups["cameras"][:MOST_CHOICES]]

    @property
    def identities(self) -> list[str]:
        """Names of identities, those that a form suggests."""
        return [group.name for group in self.groups["identities"][:MOST_SUGGESTED]]

    @property
    def num_identities(self) -> int:
        """How many identities were met."""
        return len(self.groups["identities"])

    @property
    def num_cameras(self) -> int:
        """How many cameras were met."""
        return len(self.groups["cameras"])


class Overviews:
    """The counts of a gallery, made anew after a while and after changes of the pages."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._made = -SECONDS
        self._last: Overview | None = None
        self._turn = asyncio.Lock()

    def forget(self) -> None:
        """The gallery was changed."""
        self._last = None

    async def get(self) -> Overview:
        """The counts of now, or of a moment ago."""
        async with self._turn:
            if self._last is None or time.monotonic() - self._made > SECONDS:
                items: list[Item] = []
                while len(items) < MOST_COUNTED:
                    limit = min(self.service.limits.page, MOST_COUNTED - len(items))
                    page = await self.service.page(None, after=items[-1].key if items else None, limit=limit)
                    items += page
                    if len(page) < limit:
                        break
                whole = len(items) < MOST_COUNTED
                self._last = count_items(items, self.service.embedder.modalities, is_whole=whole)
                self._made = time.monotonic()
            return self._last


def count_items(items: Sequence[Item], modalities: Sequence[str], *, is_whole: bool) -> Overview:
    """Count some items."""
    counts: dict[str, dict[str, list[str]]] = {"identities": {}, "cameras": {}, "days": {}}
    unlabelled = []
    for item in items:
        key = item.key or ""
        day = date_text(item.time)[:10] if item.time is not None and 0 <= item.time < LAST_DAY else ""
        for kind, name in (("identities", item.identity), ("cameras", item.camera), ("days", day)):
            if name:
                counts[kind].setdefault(name, []).append(key)
        if item.identity is None:
            unlabelled.append(key)
    groups = {
        kind: [Group(name, len(keys), keys[0]) for name, keys in sorted(found.items())]
        for kind, found in counts.items()
    }
    subsets = [",".join(some) for size in range(len(modalities), 0, -1) for some in combinations(modalities, size)]
    return Overview(groups, unlabelled, len(items), is_whole, subsets)
