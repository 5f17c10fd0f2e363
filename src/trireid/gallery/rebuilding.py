"""A gallery embedded again by another model, from the images that its items name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trireid.errors import InputError, RunError, printable

if TYPE_CHECKING:
    from trireid.embedding.interface import ItemEmbedder
    from trireid.embedding.items import Item
    from trireid.gallery.gallery import Gallery

BATCH = 256
"""Items that are embedded and written at a time."""


def rebuild(
    source: Gallery,
    location: str | Path,
    embedder: ItemEmbedder,
    *,
    name: str = "gallery",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Embed all items of a gallery again, into a new gallery.

    Identities, cameras, times, boxes and metadata are kept. A calibration is not: it is of the other model.

    Args:
        source: its items must name their images, and these must be there; it is not changed.
        location, name: of the new gallery, as for `Gallery.create`.
        embedder: of the new model.
        progress: is called with the number of items that were written, and of all.

    Returns:
        How many items there are.

    Raises:
        InputError: an item has no images that the model reads; nothing was written.
        RunError: an image is not there, or the new gallery cannot be made; nothing was written.
    """
    from trireid.gallery.gallery import Gallery

    total, done = 0, 0
    batch: list[Item] = []
    for item in _items(source):
        _check_images(item, embedder.modalities)
        total += 1
    info = source.info()
    with Gallery.create(location, embedder.model, name=name, root=info.root, partial=info.partial) as target:
        for item in _items(source):
            batch.append(item)
            if len(batch) == BATCH or done + len(batch) == total:
                target.add(embedder.embed(batch))
                done, batch = done + len(batch), []
                if progress is not None:
                    progress(done, total)
    return done


def _items(gallery: Gallery) -> Iterator[Item]:
    after: str | None = None
    while page := gallery.list(after=after, limit=1000):
        yield from page
        after = page[-1].key


def _check_images(item: Item, modalities: tuple[str, ...]) -> None:
    name = printable(repr(item.key), limit=80)
    if not set(item.images) & set(modalities):
        raise InputError(
            f"item {name} names no image of {', '.join(modalities)}: a gallery can be embedded again only where its "
            "items were embedded from files; add them again from their images"
        )
    for path in item.images.values():
        if not Path(path).is_file():
            shown = printable(str(path), limit=200)
            raise RunError(f"the image {shown} of item {name} is not there: put it back, or remove the item")
