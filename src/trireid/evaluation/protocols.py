"""The masks of one ranking: which gallery items match a query, and which the protocol excludes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trireid.evaluation.nearest import row_slices
from trireid.types import UNKNOWN, Labels, Protocol

ROWS = 1024
"""Queries that are compared at a time."""


def equal_known(query: Tensor, gallery: Tensor) -> Tensor:
    """Where codes are equal and known: `(Q,)` and `(G,)` or `(Q, G)` -> `(Q, G)` bool. `UNKNOWN` equals nothing."""
    return (query[:, None] == gallery) & (query[:, None] != UNKNOWN)


def ranking_masks(query: Labels, gallery: Labels, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Which gallery items match each query and which it must not see.

    Args:
        query: `(Q,)` each.
        gallery: `(G,)` each, or `(Q, G)` where every query has its own items.
        protocol: the rule.

    Returns:
        matches `(Q, G)` bool: same identity and not excluded; excluded `(Q, G)` bool: the item itself, and the same
        identity with the same camera or scene as the protocol says, or all of the same camera (`cross_camera`).
    """
    same_identity = equal_known(query.identity, gallery.identity)
    excluded = equal_known(query.item, gallery.item)
    if protocol.exclude == "camera":
        excluded |= same_identity & equal_known(query.camera, gallery.camera)
    elif protocol.exclude == "scene":
        excluded |= same_identity & equal_known(query.scene, gallery.scene)
    elif protocol.exclude == "cross_camera":
        excluded |= equal_known(query.camera, gallery.camera)
    return same_identity & ~excluded, excluded


@dataclass(frozen=True)
class Bearers:
    """Which gallery items have the code (identity, camera, item) of each query, found without comparing all pairs.

    Attributes:
        order: `(G,)` int64 gallery items sorted by code, ties by position.
        start, length: `(Q,)` int64, the query's part of `order`; nothing for `UNKNOWN`.
        width: the longest part, at least 1.
    """

    order: Tensor
    start: Tensor
    length: Tensor
    width: int

    def of(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Gallery items of some queries, and which of them are real and not padding: `(Q, width)` int64, bool."""
        offset = torch.arange(self.width, device=self.order.device)
        is_real = offset < self.length[rows, None]
        place = (self.start[rows, None] + offset).masked_fill_(~is_real, 0)
        return self.order[place], is_real


def bearers(query: Tensor, gallery: Tensor) -> Bearers:
    """The gallery items that have the code of each query: `(Q,)`, `(G,)` int64."""
    ordered, order = gallery.sort(stable=True)
    start = torch.searchsorted(ordered, query)
    length = (torch.searchsorted(ordered, query, right=True) - start).masked_fill_(query == UNKNOWN, 0)
    return Bearers(order=order, start=start, length=length, width=max(1, int(length.max())))


def unmatched(query: Labels, gallery: Labels, protocol: Protocol) -> Tensor:
    """Which queries have no valid match in the gallery: `(Q,)` bool; either side may be empty."""
    if not len(query) or not len(gallery):
        return torch.ones(len(query), dtype=torch.bool, device=query.identity.device)
    relatives, parts = bearers(query.identity, gallery.identity), []
    for rows in row_slices(len(query), ROWS):
        items, is_real = relatives.of(rows)
        matches, _ = ranking_masks(take(query, rows), take(gallery, items), protocol)
        parts.append(~(matches & is_real).any(dim=1))
    return torch.cat(parts)


def take(labels: Labels, index: Tensor | slice) -> Labels:
    """The labels of some items."""
    return Labels(**{name: value[index] for name, value in vars(labels).items()})


def unknown_labels(count: int) -> Labels:
    """Labels of unknown items: they match nothing, and nothing is hidden from them."""
    return Labels(*(torch.full((count,), UNKNOWN) for _ in range(4)))


def labels_to(labels: Labels, device: torch.device | str) -> Labels:
    """The same labels on another device."""
    return Labels(**{name: value.to(device) for name, value in vars(labels).items()})
