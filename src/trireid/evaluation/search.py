"""Search in a gallery that need not fit into memory: its features are read once, some items at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trireid.errors import InputError
from trireid.evaluation.checks import check_labels, check_sizes, check_tensors
from trireid.evaluation.distance import centre_of, centred, check_features, euclidean, unit
from trireid.evaluation.metrics import RankedList
from trireid.evaluation.nearest import LAST, key_distance, key_position, merge_nearest, row_slices, rows_at_a_time
from trireid.evaluation.presence import Presence, shared_distance
from trireid.evaluation.protocols import equal_known, labels_to, ranking_masks, take, unknown_labels
from trireid.types import Labels, Protocol

Features = Tensor | NDArray[Any]
"""`(n, D)` floats; a `numpy.memmap` or a tensor of `torch.from_file` stays on the disk."""

ALL_BUT_ITSELF = Protocol("all", exclude="none")
"""Queries see every gallery item but themselves."""


def search(
    query: Tensor,
    gallery: Features,
    query_labels: Labels | None = None,
    gallery_labels: Labels | None = None,
    protocol: Protocol = ALL_BUT_ITSELF,
    *,
    top: int = 10,
    normalise: bool = True,
    chunk_size: int = 16384,
    query_chunk_size: int = 256,
    presence: Presence | None = None,
) -> RankedList:
    """The first `top` gallery items of each query by Euclidean distance, as `ranked_list` gives them.

    Excluded items are not shown, equal distances keep the order of the gallery, and neither chunk size changes that.
    Work and result are on the device of the queries.

    Args:
        query: `(Q, D)` features.
        gallery: `(G, D)` features, also of half precision, on any device or memory-mapped.
        query_labels, gallery_labels: `(Q,)` and `(G,)`; None: nothing is known of the items, so none is hidden and
            none matches.
        protocol: which items a query must not see; by default only the item itself.
        top: places of each list, at most G of them.
        normalise: L2-normalise query and gallery first.
        chunk_size: gallery items that are read at a time.
        query_chunk_size: queries that are compared with them at a time, at most. Beside features and labels, the
            memory is about 40 bytes x chunk_size x query_chunk_size + 30 bytes x chunk_size x D.
        presence: which modalities the items have, where these differ; as in `ranking_distance`, it is used for
            normalised features only.

    Raises:
        InputError: shapes or settings do not fit, or a feature is NaN, infinite or too long for float32.

    Example:
        >>> query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [3.0, 4.0], [2.0, 0.0]])
        >>> search(query, gallery, top=2).index
        tensor([[2, 1]])
    """
    _check(query, gallery, top=top, chunk_size=chunk_size, query_chunk_size=query_chunk_size)
    first, second = _labels(query_labels, gallery_labels, len(query), len(gallery), query.device)
    if presence is not None:
        presence.check(len(query), len(gallery), query.shape[1])
        presence = None if not normalise or presence.is_uniform else presence
    chunk_sizes = chunk_size, query_chunk_size
    key = _first_keys(query, gallery, first, second, protocol, top, normalise, chunk_sizes, presence)
    hidden = key == LAST
    index = key_position(key).masked_fill_(hidden, 0)
    return RankedList(
        index=index.masked_fill(hidden, -1),
        matches=equal_known(first.identity, second.identity[index]) & ~hidden,
        distance=key_distance(key).masked_fill_(hidden, torch.inf),
    )


def _first_keys(
    query: Tensor,
    gallery: Features,
    query_labels: Labels,
    gallery_labels: Labels,
    protocol: Protocol,
    top: int,
    normalise: bool,
    chunk_sizes: tuple[int, int],
    presence: Presence | None,
) -> Tensor:
    """The smallest keys of each query, `(Q, min(top, G))` as of `nearest.order_keys`, `LAST` where there are fewer."""
    device = query.device
    normalise = normalise and presence is None  # the parts that a pair shares are normalised when they are known
    whole = _read(query, slice(0, len(query)), device, normalise, "query")
    centre = centre_of(whole)  # of the queries, so that distances do not depend on what is read with an item
    first = centred(whole, centre)
    key = torch.full((len(query), min(top, len(gallery))), LAST, device=device)
    for columns in row_slices(len(gallery), chunk_sizes[0]):
        second = centred(_read(gallery, columns, device, normalise, "gallery"), centre)
        labels = take(gallery_labels, columns)
        for rows in row_slices(len(query), rows_at_a_time(chunk_sizes[1], len(second), device)):
            _, excluded = ranking_masks(take(query_labels, rows), labels, protocol)
            if presence is None:
                distance = euclidean(first[rows], second)
            else:
                own, others = presence.query[rows].to(device), presence.gallery[columns].to(device)
                distance = shared_distance(
                    whole[rows], second.features, own, others, presence.blocks, unrelated=presence.unrelated
                )
            distance.masked_fill_(excluded, torch.inf)
            key[rows] = merge_nearest(key[rows], distance, columns.start, hidden=excluded)
    return key


def _read(features: Features, rows: slice, device: torch.device, normalise: bool, side: str) -> Tensor:
    """Some features as float32 on a device, at unit length if `normalise` is set."""
    part = features[rows]
    part = (part if isinstance(part, Tensor) else _from_numpy(part)).to(device)
    check_features(part, side, start=rows.start)
    return unit(part) if normalise else part.float()


def _from_numpy(part: NDArray[Any]) -> Tensor:
    """A copy of numbers of any byte order and precision as a tensor: torch cannot share read-only arrays."""
    if part.dtype.kind not in "fiub":
        raise InputError(f"the features are an array of type {part.dtype}; allowed are real numbers, such as float32")
    known = part.dtype.kind != "f" or part.dtype.itemsize <= 8  # torch has nothing above float64
    return torch.from_numpy(np.array(part, dtype=part.dtype.newbyteorder("=") if known else np.float64))


def _check(query: Tensor, gallery: Features, **sizes: int) -> None:
    """Raise InputError unless features and sizes of a search fit together."""
    if not isinstance(query, Tensor) or not hasattr(gallery, "shape"):
        raise InputError(
            f"search got a query of type {type(query).__name__} and a gallery of type {type(gallery).__name__}; allowed"
            " are a tensor, and a tensor or a numpy array"
        )
    check_tensors("search", query, *([gallery] if isinstance(gallery, Tensor) else []))
    shapes = tuple(query.shape), tuple(gallery.shape)
    if query.ndim != 2 or gallery.ndim != 2 or shapes[0][1] != shapes[1][1] or 0 in (*shapes[0], *shapes[1]):
        raise InputError(
            f"search got features {shapes[0]} and {shapes[1]}; allowed are (Q, D) and (G, D), each at least 1"
        )
    check_sizes("search", **sizes)


def _labels(
    query: Labels | None, gallery: Labels | None, num_queries: int, num_gallery: int, device: torch.device
) -> tuple[Labels, Labels]:
    """The labels of both sides on a device.

    Raises:
        InputError: there is not one label for each item.
    """
    query = unknown_labels(num_queries) if query is None else query
    gallery = unknown_labels(num_gallery) if gallery is None else gallery
    check_labels("search", query, gallery)
    if (len(query), len(gallery)) != (num_queries, num_gallery):
        raise InputError(
            f"search got {len(query)} query and {len(gallery)} gallery labels for {num_queries} queries and "
            f"{num_gallery} gallery items; there must be one for each"
        )
    return labels_to(query, device), labels_to(gallery, device)
