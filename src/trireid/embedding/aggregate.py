"""Several images of one object (a track, a burst) become one item. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trireid.embedding.embeddings import Embeddings
from trireid.embedding.items import MAX_BYTES, MAX_METADATA, Box, Item, metadata_text
from trireid.errors import InputError, printable
from trireid.names import MODALITIES

if TYPE_CHECKING:
    from trireid.types import Blocks

FIELDS = ("identity", "camera", "scene")
_NEVER = ("key", "time", "box", "quality", "metadata", "images")
_KNOWN = "identity, camera, scene or a name in the metadata"
_KEYS_BYTES = 8_000
"""Of the keys that a result lists, as JSON: paths and facts of an item are to fit beside them."""
Label = str | None
By = str | Callable[[Item], Label] | Sequence[Label]


def aggregate(embeddings: Embeddings, by: By = "identity") -> Embeddings:
    """Make one item of all items with the same label, in the order in which the labels first occur.

    An item is first scaled to a mean square of 1 over its blocks, as in the distance, which compares directions. Each
    block of the result then gets the direction of the weighted mean of the unit blocks of those items that have it,
    and the weighted root mean square of their lengths. So a block weighs in the distance as it does for a single
    image, however many items have it and however much they differ; an item that is alone keeps its direction. The
    weights are `Item.quality`, 1 where it is None. A result has every modality that one of its items has.

    The result keeps what its items agree on (identity, camera, scene, metadata), the earliest time, for each modality
    the image of the item with the largest weight, and in its metadata the number of items (`num_items`) and their keys
    (`item_keys`, the first that fit into 8,000 bytes). Where results are put together again, these are of all items
    that they were made of.

    Args:
        embeddings: of single images.
        by: `identity`, `camera`, `scene` or a name in the metadata; several of them separated by commas; a function of
            an item; or one label for each item.

    Raises:
        InputError: an item has no label, the function fails, or the number of labels is another one.

    Example:
        >>> from trireid import Item, ModelIdentity
        >>> model = ModelIdentity("0" * 64, "global", blocks=((0,), (1,), (2,)), width=6)
        >>> items = tuple(Item({}, key=key, identity="7") for key in ("a", "b"))
        >>> vectors = np.array([[1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]], dtype=np.float32)
        >>> present = np.array([[True, True, False], [True, False, False]])
        >>> track = aggregate(Embeddings(vectors, present, items, model))
        >>> track.keys, track.vectors.astype(float).round(2).tolist()
        (('7',), [[0.71, 0.71, 1.0, 0.0, 0.0, 0.0]])
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    names = _labels(embeddings.items, by)
    for row, name in enumerate(names):
        groups.setdefault(name, []).append(row)
    blocks = embeddings.model.blocks
    vectors = np.zeros((len(groups), embeddings.model.width), np.float32)
    present = np.zeros((len(groups), len(MODALITIES)), np.bool_)
    items = []
    for number, (name, rows) in enumerate(groups.items()):
        chosen = [embeddings.items[row] for row in rows]
        weights = np.array([1.0 if item.quality is None else item.quality for item in chosen])
        vectors[number] = mean_vector(embeddings.vectors[rows], embeddings.present[rows], weights, blocks)
        present[number] = embeddings.present[rows].any(axis=0)
        items.append(_joined("/".join(name), chosen, weights))
    return Embeddings(vectors, present, tuple(items), embeddings.model)


def mean_vector(
    vectors: NDArray[np.float32], present: NDArray[np.bool_], weights: NDArray[np.float64], blocks: Blocks
) -> NDArray[np.float64]:
    """One vector `(D,)` of several `(n, D)`, see `aggregate`.

    Args:
        vectors: `(n, D)`, not normalised.
        present: `(n, M)` bool.
        weights: `(n,)` above 0.
        blocks: the modalities of each of K blocks.
    """
    filled = np.stack([present[:, list(block)].any(axis=1) for block in blocks], axis=1)  # (n, K)
    parts = vectors.astype(np.float64).reshape(len(vectors), len(blocks), -1) * filled[..., None]  # (n, K, D / K)
    lengths = np.linalg.norm(parts, axis=2)  # (n, K)
    units = _divided(parts, lengths[..., None])
    shares = _divided(lengths * np.sqrt(filled.sum(axis=1, keepdims=True)), np.linalg.norm(lengths, axis=1)[:, None])
    weight = weights[:, None] * filled  # (n, K)
    scale = np.sqrt(_divided((weight * shares**2).sum(axis=0), weight.sum(axis=0)))  # (K,)
    mean = (weight[..., None] * units).sum(axis=0)  # (K, D / K)
    result: NDArray[np.float64] = _divided(mean, np.linalg.norm(mean, axis=1)[:, None]) * scale[:, None]
    return result.reshape(-1)


def check_labels(items: Sequence[Item], by: By) -> None:
    """Refuse what `aggregate` would, before long work.

    Raises:
        InputError: as `aggregate`.
    """
    _labels(items, by)


def _divided(values: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
    """A quotient, 0 where the divisor is 0."""
    return np.divide(values, by, out=np.zeros_like(values), where=np.broadcast_to(by, values.shape) > 0)


def _labels(items: Sequence[Item], by: By) -> list[tuple[str, ...]]:
    """What each item is grouped by."""
    if isinstance(by, str):
        names = [name.strip() for name in by.split(",")]
        for name in names:
            _check_name(name, items)
        found = [tuple(_value(item, name) for name in names) for item in items]
    else:
        given = [_called(by, item) for item in items] if callable(by) else _listed(by, items)
        for item, label in zip(items, given, strict=True):
            if not isinstance(label, str) or not label:
                shown = printable(repr(label), limit=60)
                raise InputError(f"the label of {item.name} is {shown}: give text for each item")
        found = [(str(label),) for label in given]
    for item, parts in zip(items, found, strict=True):
        size = len("/".join(parts).encode(errors="surrogatepass"))
        if size > MAX_BYTES["key"]:
            raise InputError(
                f"the label of {item.name} has {size} bytes, as a key at most {MAX_BYTES['key']}: shorten it"
            )
    return found


def _check_name(name: str, items: Sequence[Item]) -> None:
    """Refuse names by which items are never put together."""
    if not name:
        raise InputError(f"a name in `by` is empty: give {_KNOWN}, or several of them separated by commas")
    if name in _NEVER and not any(name in item.metadata for item in items):
        raise InputError(f"items cannot be put together by their {name}: give {_KNOWN}")


def _called(by: Callable[[Item], Label], item: Item) -> Label:
    try:
        return by(item)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = printable(f"{type(error).__name__}: {error}", limit=120)
        raise InputError(
            f"the function `by` fails for {item.name} ({what}): it must give text for each item"
        ) from error


def _listed(by: Any, items: Sequence[Item]) -> list[Label]:
    """One label for each item."""
    if not isinstance(by, Iterable):
        raise InputError(f"by is {printable(repr(by), limit=60)}: give {_KNOWN}, a function, or a label for each item")
    given = list(by)
    fields = {*FIELDS, *_NEVER, *(name for item in items[:1] for name in item.metadata)}
    if given and all(isinstance(label, str) and label in fields for label in given):
        joined = printable(",".join(given), limit=80)
        raise InputError(f"by lists names of fields, not a label for each item: write them as one text, '{joined}'")
    if len(given) != len(items):
        raise InputError(f"there are {len(given)} labels for {len(items)} items: give one for each")
    return given


def _count(item: Item) -> int:
    """How many items it was made of."""
    number = item.metadata.get("num_items")
    return number if type(number) is int and number > 0 else 1


def _keys(items: Sequence[Item], rest: Mapping[str, Any]) -> list[str]:
    """The keys of what a result was made of, the first that fit beside the rest of its metadata."""
    room = min(_KEYS_BYTES, MAX_METADATA - len(metadata_text(rest)) - len('"item_keys": [], '))
    kept: list[str] = []
    for item in items:
        own = item.metadata.get("item_keys")
        for key in own if isinstance(own, list) else [] if item.key is None else [item.key]:
            room -= len(json.dumps(key)) + len(", ")
            if room < 0:
                return kept
            kept.append(key)
    return kept


def _value(item: Item, name: str) -> str:
    value = getattr(item, name) if name in FIELDS else item.metadata.get(name)
    if value is None or value == "":
        known = ", ".join([*FIELDS, *(printable(each, limit=30) for each in list(item.metadata)[:5])])
        raise InputError(
            f"{item.name} has no {printable(name, limit=40)}, by which items are put together: name one that all items "
            f"have (here {known}), or leave such items out"
        )
    return str(value)


def _joined(key: str, items: Sequence[Item], weights: NDArray[np.float64]) -> Item:
    """What is known of all items of a group."""
    images: dict[str, Any] = {}
    boxes: dict[str, Box] = {}
    for number in np.argsort(-weights, kind="stable").tolist():  # the best first
        item = items[number]
        for name in item.images:
            if name not in images:
                images[name] = item.images[name]
                box = item.box_of(name)
                boxes |= {} if box is None else {name: box}
    first = items[0]
    same = {name: value for name, value in first.metadata.items() if all(i.metadata.get(name) == value for i in items)}
    common = {name: getattr(first, name) if len({getattr(i, name) for i in items}) == 1 else None for name in FIELDS}
    same = {**same, "num_items": sum(map(_count, items))}
    times = [item.time for item in items if item.time is not None]
    return replace(
        first,
        key=key,
        images={name: images[name] for name in MODALITIES if name in images},
        **common,
        time=min(times, default=None),
        box=boxes or None,
        quality=None,
        metadata={**same, "item_keys": _keys(items, same)},
    )
