"""What people decide about matches, written to the gallery so that each decision can be taken back."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from trireid.embedding.embeddings import Embeddings
from trireid.embedding.items import Item
from trireid.errors import printable
from trireid.gallery.filters import Filter
from trireid.gallery.stored import stored_embeddings
from trireid.serve.journal import Action, Journal, Kind
from trireid.serve.problems import Problem
from trireid.serve.searches import Search
from trireid.serve.service import Service

Step = Mapping[str, Any]


class Reviewer:
    """Changes the gallery for people, one change after the other, and writes each to a journal first."""

    def __init__(self, service: Service, journal: Journal) -> None:
        self.service = service
        self.journal = journal
        self._turn = asyncio.Lock()

    async def accept(self, search: Search, match: str, identity: str | None) -> Action:
        """The query shows the same object as a match: it becomes an item of the match's identity.

        Args:
            search: with the query.
            match: key of the item that was accepted.
            identity: for both, where the match has none.

        Raises:
            Problem: the match has no identity and none is given, or the query's key is taken.
        """
        (found,) = await self.service.get([match])
        named = found.identity or identity
        if named is None:
            raise Problem(422, "the match has no identity yet: write the name that both get")
        steps = [] if found.identity else [_label(found, named)]
        return await self._decide("accept", search, named, steps)

    async def new_identity(self, search: Search, identity: str) -> Action:
        """The query shows an object that the gallery does not know: it becomes the first item of a new identity.

        Raises:
            Problem: there is such an identity, or the query's key is taken.
        """
        if await self.service.count(Filter(identities=[identity])):
            raise Problem(
                409,
                f"the gallery has an identity '{printable(identity, limit=80)}' already: accept one of its items, or "
                "write another name",
            )
        return await self._decide("identity", search, identity, [])

    async def _decide(self, kind: Kind, search: Search, identity: str, steps: Sequence[Step]) -> Action:
        """Give the query an identity: label it where the gallery has it, else add it."""
        async with self._turn:
            own = None if search.key is None else await self._find(search.key)
            if own is not None:
                return await self._do(kind, own.key or "", identity, [*steps, _label(own, identity)])
            if search.embeddings is None:
                raise Problem(404, "the item that was searched with is not in the gallery any more; search again")
            key = search.item.key or ""
            if await self._find(key) is not None:
                raise Problem(
                    409, f"the gallery has another item '{printable(key, limit=80)}': search again with a free key"
                )
            items = (replace(search.item, identity=identity),)
            embeddings = replace(search.embeddings, items=items)
            action = await self._do(
                kind,
                key,
                identity,
                [*steps, {"op": "add", "key": key, "after": identity}],
                (embeddings, search.pictures),
            )
            search.key = key
            return action

    async def label(self, key: str, identity: str | None) -> Action:
        """State which object an item shows, None: not known.

        Raises:
            Problem: 404, there is no such item.
        """
        async with self._turn:
            (item,) = await self.service.get([key])
            return await self._do("label" if identity else "unlabel", key, identity, [_label(item, identity)])

    async def remove(self, key: str) -> Action:
        """Remove an item; its feature, facts and thumbnails are kept in the journal.

        Raises:
            Problem: 404, there is no such item.
        """
        async with self._turn:
            (item,) = await self.service.get([key])
            step = await self.service.read(partial(self._removed, item))
            return await self._do("remove", key, item.identity, [step])

    async def add(self, embeddings: Embeddings, pictures: Mapping[str, bytes]) -> Action:
        """Add one item.

        Raises:
            Problem: 409, there is an item of its key.
        """
        (item,) = embeddings.items
        key = item.key or ""
        async with self._turn:
            if await self._find(key) is not None:
                raise Problem(
                    409,
                    f"the gallery has an item '{printable(key, limit=80)}' already: remove it first, or write another "
                    "key",
                )
            return await self._do("add", key, item.identity, [_add(key, item.identity)], (embeddings, pictures))

    async def undo(self, number: str) -> Action:
        """Take an action back.

        Raises:
            Problem: it was taken back before, or its items were changed since.
        """
        async with self._turn:
            action = self.journal.find(number)
            if action.undone:
                raise Problem(409, "this change was taken back before")
            for step in action.steps:
                await self._check_unchanged(step)
            for step in reversed(action.steps):
                await self._take_back(step)
            await self.service.read(partial(self.journal.undo, action))
            return action

    async def _do(
        self,
        kind: Kind,
        key: str,
        identity: str | None,
        steps: Sequence[Step],
        added: tuple[Embeddings, Mapping[str, bytes]] | None = None,
    ) -> Action:
        action = await self.service.read(partial(self.journal.write, kind, key, identity, steps))
        is_done = False
        try:
            for step in steps:
                if step["op"] == "label":
                    await self.service.label([step["key"]], step["after"])
                elif step["op"] == "remove":
                    await self.service.remove(Filter(keys=[step["key"]]))
                elif added is not None:
                    await self.service.keep(added[0], [added[1]])
            is_done = True
        finally:
            if not is_done:
                await self.service.read(partial(self.journal.fail, action))
        return action

    async def _find(self, key: str) -> Item | None:
        return next(iter(await self.service.page(Filter(keys=[key]), after=None, limit=1)), None)

    async def _check_unchanged(self, step: Step) -> None:
        item, name = await self._find(step["key"]), printable(step["key"], limit=80)
        relabelled = item is not None and item.identity != step.get("after")
        if (step["op"] == "label" and item is None) or (step["op"] in ("label", "add") and relabelled):
            raise Problem(409, f"the item '{name}' was changed or removed since; correct it by hand")
        if step["op"] == "remove" and item is not None:
            raise Problem(409, f"the gallery has an item '{name}' again; it is not replaced")

    async def _take_back(self, step: Step) -> None:
        if step["op"] == "label":
            await self.service.label([step["key"]], step["before"])
        elif step["op"] == "add":
            await self.service.remove(Filter(keys=[step["key"]]))
        else:
            pictures = {name: base64.b64decode(text) for name, text in step["pictures"].items()}
            await self.service.keep(self._restored(step), [pictures])

    def _removed(self, item: Item) -> Step:
        """All that is needed to add an item again."""
        key = item.key or ""
        embeddings = stored_embeddings(self.service.gallery, [key])
        media = self.service.media
        return {
            "op": "remove",
            "key": key,
            "item": {name: getattr(item, name) for name in ("identity", "camera", "scene", "time", "quality", "box")}
            | {"images": {name: str(path) for name, path in item.images.items()}, "metadata": dict(item.metadata)},
            "vector": base64.b64encode(np.ascontiguousarray(embeddings.vectors[0], dtype="<f4").tobytes()).decode(),
            "present": [bool(each) for each in embeddings.present[0]],
            "pictures": {name: base64.b64encode(picture).decode() for name, picture in media.kept(key).items()},
        }

    def _restored(self, step: Step) -> Embeddings:
        known = dict(step["item"])
        box = known.pop("box")
        if box is not None:
            box = {name: tuple(each) for name, each in box.items()} if isinstance(box, dict) else tuple(box)
        return Embeddings(
            vectors=np.frombuffer(base64.b64decode(step["vector"]), dtype="<f4")[None].astype(np.float32),
            present=np.array([step["present"]], dtype=np.bool_),
            items=(Item(key=step["key"], box=box, **known),),
            model=self.service.embedder.model,
        )


def _label(item: Item, identity: str | None) -> Step:
    return {"op": "label", "key": item.key, "before": item.identity, "after": identity}


def _add(key: str, identity: str | None) -> Step:
    return {"op": "add", "key": key, "after": identity}
