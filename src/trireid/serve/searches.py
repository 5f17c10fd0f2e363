"""Searches that pages come back to: kept in memory, few and for a while. After a restart they are gone."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trireid.serve.problems import Problem

if TYPE_CHECKING:
    from trireid.embedding.embeddings import Embeddings
    from trireid.embedding.items import Item
    from trireid.serve.uploads import Upload

MOST = 200
MOST_BYTES = 128 * 2**20


@dataclass
class Search:
    """One query of a person, and what the person decided about its matches.

    Attributes:
        item: the query, with what was written about it.
        embeddings: its feature, one row; None: the query is an item of the gallery.
        arguments: of `Gallery.query`.
        uploads: its images as they were sent, by modality, to explain the search with.
        pictures: its thumbnails.
        key: the item of the gallery that it is, or became by accepting a match; None: none.
        hidden: keys, or identities in a search by identity, that were rejected.
        note: why no threshold was used although one was chosen; empty: none was chosen, or it was used.
        kept: pictures of the kept patches by modality, once they were made.
    """

    item: Item
    embeddings: Embeddings | None
    arguments: dict[str, Any]
    uploads: Mapping[str, Upload] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    key: str | None = None
    hidden: list[str] = field(default_factory=list)
    note: str = ""
    kept: Mapping[str, bytes] | None = None
    number: str = field(default_factory=lambda: secrets.token_urlsafe(12))

    @property
    def by_identity(self) -> bool:
        """Whether identities are ranked, not items."""
        return bool(self.arguments.get("by") == "identity")

    @property
    def size(self) -> int:
        """Bytes of its images."""
        return sum(len(upload.content) for upload in self.uploads.values()) + sum(map(len, self.pictures.values()))


class Searches:
    """The last searches; the oldest go first."""

    def __init__(self, *, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self.most, self.most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Search] = OrderedDict()
        self._bytes = 0

    def keep(self, search: Search) -> None:
        """Keep one more."""
        self._kept[search.number] = search
        self._bytes += search.size
        while len(self._kept) > self.most or (self._bytes > self.most_bytes and len(self._kept) > 1):
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.size

    def find(self, number: str) -> Search:
        """The search of a page.

        Raises:
            Problem: 404, it is not kept any more.
        """
        if number not in self._kept:
            raise Problem(
                404,
                "this search is not kept any more, because the service was started again or many came "
                "after it; search again. What was accepted is in the gallery",
            )
        self._kept.move_to_end(number)
        return self._kept[number]
