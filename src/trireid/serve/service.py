"""What the service does, for its API and its pages alike: the model and the gallery, used safely by many at once.

The model runs in one thread, and so do the searches and the writes of the gallery; an answer of success is given only
after the gallery has written it to the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from trireid.embedding.embeddings import Embeddings
from trireid.embedding.interface import ItemEmbedder
from trireid.embedding.items import Box, Item
from trireid.errors import printable
from trireid.serve.batching import Batcher
from trireid.serve.limits import Budget, Limits
from trireid.serve.media import Media, thumbnail
from trireid.serve.observing import Observer
from trireid.serve.problems import Problem
from trireid.serve.uploads import Fields, Uploads, count_pixels, decode_upload

if TYPE_CHECKING:
    from trireid.data.formats import Values
    from trireid.gallery.filters import Filter
    from trireid.serve.schemas import ItemFields, Unshown

Result = TypeVar("Result")
_DECODERS = 4
_READERS = 4


class Service:
    """A model and a gallery behind asynchronous methods.

    Args:
        embedder: `trireid.Embedder`, or one of the same interface.
        gallery: `trireid.Gallery`; its model must be the embedder's.
        limits: how much one request may hold.
        media: thumbnails of items.
        observer: what is counted.
    """

    def __init__(
        self,
        embedder: ItemEmbedder,
        gallery: Any,
        *,
        limits: Limits,
        media: Media,
        observer: Observer,
    ) -> None:
        self.embedder = embedder
        self.gallery = gallery
        self.limits = limits
        self.media = media
        self.observer = observer
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._searcher = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._pixels = Budget(limits.decoded_pixels)
        self._embedding = Batcher[Item, Embeddings](
            self._embed_batch,
            executor=self._model,
            most=limits.batch_items,
            seconds=limits.batch_seconds,
            observe=partial(observer.batch, "embed"),
        )
        self._searching = Batcher[Any, Any](
            self._search_batch,
            executor=self._searcher,
            most=limits.batch_items,
            seconds=0.0,
            observe=partial(observer.batch, "search"),
        )

    async def decode(self, work: Callable[[], Result]) -> Result:
        """Run something that reads the content of a request in a thread."""
        return await self._in(self._decoders, work)

    async def embed(self, uploads: Uploads[Fields]) -> Embeddings:
        """The features of uploaded items, with what is known about each.

        Raises:
            Problem: an image is too large or cannot be decoded.
            TrireidError: the model does not take it.
        """
        embeddings, _ = await self._embed(uploads, pictures=False)
        return embeddings

    async def add(self, uploads: Uploads[Fields]) -> Any:
        """Add uploaded items; each needs a key, and replaces the item that has it. They are on the disk afterwards.

        Returns:
            `added` and `replaced`.

        Raises:
            Problem, TrireidError: as `embed`, or the gallery does not take it; then nothing is added.
        """
        return await self.keep(*await self.read_items(uploads))

    async def read_items(self, uploads: Uploads[Fields]) -> tuple[Embeddings, Sequence[Mapping[str, bytes]]]:
        """The features of uploaded items as `embed`, and the thumbnails of each by modality; nothing is kept."""
        return await self._embed(uploads, pictures=True)

    async def keep(self, embeddings: Embeddings, pictures: Sequence[Mapping[str, bytes]]) -> Any:
        """Add items whose features are known, with their thumbnails, as `add`."""
        return await self._in(self._writer, partial(self._add, embeddings, pictures))

    async def with_model(self, work: Callable[[], Result]) -> Result:
        """Run something in the thread of the model."""
        return await self._in(self._model, work)

    def _add(self, embeddings: Embeddings, pictures: Sequence[Mapping[str, bytes]]) -> Any:
        done = self.gallery.add(embeddings)
        for item, thumbnails in zip(embeddings.items, pictures, strict=True):
            assert item.key is not None  # or the gallery would have refused it
            self.media.keep(item.key, thumbnails)
        return done

    async def _embed(
        self, uploads: Uploads[Fields], *, pictures: bool
    ) -> tuple[Embeddings, Sequence[Mapping[str, bytes]]]:
        if not uploads.images:
            raise Problem(422, "items: the request has no item with an image")
        async with self._pixels.taken(count_pixels(uploads, self.limits)):
            decode = partial(_decode, uploads, limits=self.limits, pictures=pictures)
            images, thumbnails = await self.decode(decode)
            bare = [
                Item(images=own, box=_box(fields), camera=fields.camera)
                for own, fields in zip(images, uploads.fields.items, strict=True)
            ]
            rows = await self._embedding(bare)
        named = zip(uploads.fields.items, uploads.file_names, strict=True)
        known = [_known(str(number), fields, names) for number, (fields, names) in enumerate(named)]
        return _joined(rows, known), thumbnails

    def _embed_batch(self, items: Sequence[Item], group: Hashable) -> list[Embeddings]:
        """One `Embeddings` of a single row for each item."""
        # Keys of different users may be equal: each gets its own back afterwards.
        numbered = [replace(item, key=str(number)) for number, item in enumerate(items)]
        embeddings = self.embedder.embed(numbered)
        return [
            Embeddings(
                vectors=embeddings.vectors[row : row + 1],
                present=embeddings.present[row : row + 1],
                items=embeddings.items[row : row + 1],
                model=embeddings.model,
            )
            for row in range(len(embeddings))
        ]

    async def search(self, queries: Embeddings | Sequence[str], **arguments: Any) -> Sequence[Any]:
        """The nearest items or identities of each query, as `Gallery.query`.

        Args:
            queries: embeddings, or keys of items that the gallery has, see `get`.
            arguments: of `Gallery.query`; requests with equal ones are searched together.

        Raises:
            TrireidError: the gallery does not take it.
        """
        group = repr(sorted(arguments.items()))
        if isinstance(queries, Embeddings):
            if (means := self.gallery.camera_means) is not None:
                means.subtract(queries)  # refuses what would end the searches of others in the same batch
            rows = [
                Embeddings(queries.vectors[row : row + 1], queries.present[row : row + 1], (item,), queries.model)
                for row, item in enumerate(queries.items)
            ]
            entries: Sequence[Any] = [(row, arguments) for row in rows]
        else:
            group, entries = f"keys {group}", [(key, arguments) for key in queries]
        return await self._searching(entries, group=group)

    def _search_batch(self, entries: Sequence[Any], group: Hashable) -> Sequence[Any]:
        queries, arguments = [query for query, _ in entries], entries[0][1]
        if not isinstance(queries[0], Embeddings):
            return list(self.gallery.query(queries, **arguments))
        own = [row.items[0] for row in queries]
        numbered = [replace(item, key=f"{number}") for number, item in enumerate(own)]
        results = self.gallery.query(_joined(queries, numbered), **arguments)
        return [replace(result, key=item.key) for result, item in zip(results, own, strict=True)]

    async def get(self, keys: Sequence[str]) -> Sequence[Item]:
        """Items of the gallery by their keys, in this order.

        Args:
            keys: at least one, at most 1000.

        Raises:
            Problem: 404, there is none of a key.
        """
        from trireid.gallery.filters import Filter

        unique = list(dict.fromkeys(keys))
        listed = await self.read(partial(self.gallery.list, Filter(keys=unique), limit=len(unique)))
        found = {item.key: item for item in listed}
        for key in keys:
            if key not in found:
                raise Problem(404, f"the gallery has no item with the key '{printable(key, limit=100)}'")
        return [found[key] for key in keys]

    async def label(self, keys: Sequence[str], identity: str | None) -> int:
        """State which object some items are, None: not known any more; the number of items.

        Raises:
            Problem: 404, there is no item of a key; then nothing is changed.
        """
        await self.get(keys)
        if identity is None:
            await self._in(self._writer, partial(self.gallery.unlabel, list(keys)))
        else:
            await self._in(self._writer, partial(self.gallery.label, list(keys), identity))
        return len(keys)

    async def remove(self, where: Filter | None) -> int:
        """Remove items with their thumbnails; how many there were."""
        return await self._in(self._writer, partial(self._remove, where))

    def _remove(self, where: Filter | None) -> int:
        from trireid.gallery.filters import Filter

        keys = list(self._all_keys(where))
        if where is None:  # the gallery refuses an empty filter
            some = [keys[start : start + self.limits.page] for start in range(0, len(keys), self.limits.page)]
            removed = sum(int(self.gallery.remove(Filter(keys=part))) for part in some)
        else:
            removed = int(self.gallery.remove(where))
        self.media.remove(keys)
        return removed

    def _all_keys(self, where: Filter | None) -> list[str]:
        keys: list[str] = []
        while page := self.gallery.list(where, after=keys[-1] if keys else None, limit=self.limits.page):
            keys.extend(item.key for item in page)
            if len(page) < self.limits.page:
                break
        return keys

    async def page(self, where: Filter | None, *, after: str | None, limit: int) -> Sequence[Item]:
        """The next items in the order of keys."""
        listed: Sequence[Item] = await self.read(partial(self.gallery.list, where, after=after, limit=limit))
        return listed

    async def count(self, where: Filter | None = None) -> int:
        """The number of items."""
        return int(await self.read(partial(self.gallery.count, where)))

    async def read(self, work: Callable[[], Result]) -> Result:
        """Run something that only reads the gallery, or files, in a thread."""
        return await self._in(self._readers, work)

    async def picture(self, key: str, modality: str) -> bytes:
        """A small WebP picture of an item.

        Raises:
            Problem: 404, there is no such item or picture.
        """
        (item,) = await self.get([key])
        images = {name: str(path) for name, path in item.images.items()}
        found = await self.read(partial(self.media.picture, key, modality, images))
        if found is None:
            raise Problem(404, f"the item has no {modality} image that can be shown")
        return found

    def pictured(self, item_key: str, images: Mapping[str, Any]) -> tuple[list[str], dict[str, Unshown]]:
        """The modalities of which `picture` has one, and why it has none of others that the item has a file of."""
        paths = {name: str(path) for name, path in images.items()}
        shown = [name for name in self.embedder.modalities if self.media.can_show(item_key, name, paths)]
        others = {name: self.media.why_not(path) for name, path in paths.items() if name not in shown}
        return shown, {name: why for name, why in others.items() if why is not None}

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def close(self) -> None:
        """Let what is being written finish, then close the gallery."""
        for pool in (self._decoders, self._readers, self._searcher, self._model):
            pool.shutdown(wait=False, cancel_futures=True)
        self._writer.shutdown(wait=True)
        self.gallery.close()


def _decode(
    uploads: Uploads[Fields], *, limits: Limits, pictures: bool
) -> tuple[list[dict[str, Values]], list[dict[str, bytes]]]:
    images = [{name: decode_upload(each, limits) for name, each in item.items()} for item in uploads.images]
    small = [{name: thumbnail(values) for name, values in item.items()} for item in images] if pictures else []
    return images, small


def _box(fields: ItemFields) -> Box | dict[str, Box] | None:
    box = fields.box
    return {str(name): each for name, each in box.items()} if isinstance(box, dict) else box


def _known(number: str, fields: ItemFields, file_names: Mapping[str, str]) -> Item:
    """What is known about an item; without a key it has its number, and its file names are kept as metadata."""
    metadata: dict[str, Any] = dict(fields.metadata)
    if file_names and "file_names" not in metadata:
        metadata["file_names"] = dict(file_names)
    return Item(
        images={},
        key=fields.key or number,
        identity=fields.identity,
        camera=fields.camera,
        scene=fields.scene,
        time=fields.time,
        box=_box(fields),
        metadata=metadata,
    )


def _joined(rows: Sequence[Embeddings], items: Sequence[Item]) -> Embeddings:
    """Rows of one model as one `Embeddings` of other items."""
    return Embeddings(
        vectors=np.concatenate([row.vectors for row in rows]),
        present=np.concatenate([row.present for row in rows]),
        items=tuple(items),
        model=rows[0].model,
    )
