"""A gallery embedded again by another model, from the images that its items name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trireid.errors import InputError, RunError, printable
from trireid.gallery.filters import Filter
from trireid.gallery.layout import CODES, names_of
from trireid.gallery.location import whole_or_nothing

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
        InputError: an item was made of several images (`trireid.aggregate`), was embedded from an array, whose path is
            not known, or has no images that the model reads; nothing was embedded or written.
        RunError: an image is not there, or the new gallery cannot be made; nothing was written.
        TrireidError: an image cannot be read; nothing is left of the new gallery.
    """
    from trireid.gallery.gallery import Gallery

    total, done = 0, 0
    batch: list[Item] = []
    for code in CODES:
        presence = names_of(code)
        for item in _items(source, Filter(presence=",".join(presence))):
            _check_item(item, presence, embedder.modalities)
            total += 1
    info = source.info()
    with (
        Gallery.create(location, embedder.model, name=name, root=info.root, partial=info.partial) as target,
        whole_or_nothing(target._engine),  # a part of the items would pass for all of them
    ):
        for item in _items(source):
            batch.append(item)
            if len(batch) == BATCH or done + len(batch) == total:
                target.add(embedder.embed(batch))
                done, batch = done + len(batch), []
                if progress is not None:
                    progress(done, total)
    return done


def _items(gallery: Gallery, where: Filter | None = None) -> Iterator[Item]:
    after: str | None = None
    while page := gallery.list(where, after=after, limit=1000):
        yield from page
        after = page[-1].key


def _check_item(item: Item, presence: tuple[str, ...], modalities: tuple[str, ...]) -> None:
    """Refuse an item whose feature by another model would not be of what its feature here is of.

    Args:
        item: of the gallery.
        presence: what it was embedded from.
        modalities: that the other model reads.
    """
    name = printable(repr(item.key), limit=80)
    number = item.metadata.get("num_items")
    if type(number) is int and number > 1:
        raise InputError(
            f"item {name} was made of {number:,} items and names the images of one: embed these items by the other "
            "model, put them together again (trireid.aggregate, --aggregate-by) and add them to a new gallery"
        )
    lost = [each for each in presence if each in modalities and each not in item.images]
    if item.images and lost:
        raise InputError(
            f"item {name} was embedded from {', '.join(presence)}, and its {' and '.join(lost)} image was given as "
            "pixels, of which no file is known: add the item again by the other model, from its images"
        )
    if not set(item.images) & set(modalities):
        raise InputError(
            f"item {name} names no image of {', '.join(modalities)}: a gallery can be embedded again only where its "
            "items were embedded from files; add them again from their images"
        )
    for path in item.images.values():
        if not Path(path).is_file():
            shown = printable(str(path), limit=200)
            raise RunError(f"the image {shown} of item {name} is not there: put it back, or remove the item")
