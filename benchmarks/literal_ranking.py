"""Ranking and re-ranking as in published code, in plain numpy: the reference of benchmarks/ranking.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trireid.types import Labels

Array = NDArray[Any]


def ranking(distance: Array, query: Labels, gallery: Labels) -> dict[str, float]:
    """mAP, mINP and rank-1 in [0, 1] by sorting every row, one query at a time (cross-camera)."""
    identity, camera = gallery.identity.numpy(), gallery.camera.numpy()
    precisions, penalties, firsts = [], [], []
    order = np.argsort(distance, axis=1, kind="stable")
    for row, (who, where) in enumerate(zip(query.identity.tolist(), query.camera.tolist(), strict=True)):
        columns = order[row]
        columns = columns[(identity[columns] != who) | (camera[columns] != where)]
        rank = np.flatnonzero(identity[columns] == who) + 1
        if len(rank):
            precisions.append((np.arange(1, len(rank) + 1) / rank).mean())
            penalties.append(len(rank) / rank[-1])
            firsts.append(rank[0] == 1)
    return {"mAP": float(np.mean(precisions)), "mINP": float(np.mean(penalties)), "rank1": float(np.mean(firsts))}


def reranking(
    query_gallery: Array, query_query: Array, gallery_gallery: Array, *, k1: int, k2: int, lambda_value: float
) -> Array:
    """Zhong et al. 2017 with a dense encoding `(N, N)` and lists of items that share a column; `(Q, G)` float32."""
    num_query = len(query_query)
    distance = np.block([[query_query, query_gallery], [query_gallery.T, gallery_gallery]])
    squared = distance**2
    squared = squared / squared.max(axis=1, keepdims=True)
    neighbours = _neighbours(distance, max(k1 + 1, k2))
    encoding = np.zeros_like(squared)
    for item in range(len(squared)):
        members = _reciprocal(neighbours, item, k1)
        expanded = members
        for member in members:
            offered = _reciprocal(neighbours, member, round(k1 / 2))
            if 3 * len(np.intersect1d(offered, members)) > 2 * len(offered):
                expanded = np.append(expanded, offered)
        expanded = np.unique(expanded)
        weight = np.exp(-squared[item, expanded])
        encoding[item, expanded] = weight / weight.sum()
    if k2 > 1:
        encoding = np.stack([encoding[neighbours[item, :k2]].mean(axis=0) for item in range(len(squared))])
    jaccard = _jaccard(encoding, num_query)
    return (1 - lambda_value) * jaccard + lambda_value * squared[:num_query, num_query:]


def _neighbours(distance: Array, count: int) -> Array:
    """The nearest items of each, itself first, ties by position."""
    distance = distance.copy()
    np.fill_diagonal(distance, -1.0)
    bound = np.partition(distance, count - 1, axis=1)[:, count - 1]
    result = np.empty((len(distance), count), dtype=np.int64)
    for row, values in enumerate(distance):
        inside = np.flatnonzero(values <= bound[row])  # ascending, so that a stable sort keeps the order of ties
        result[row] = inside[np.argsort(values[inside], kind="stable")][:count]
    return result


def _reciprocal(neighbours: Array, item: int, k: int) -> Array:
    """Neighbours that name the item as theirs."""
    forward = neighbours[item, : k + 1]
    return forward[(neighbours[forward, : k + 1] == item).any(axis=1)]


def _jaccard(encoding: Array, num_query: int) -> Array:
    """Jaccard distances of queries to the gallery, by the items whose encodings share a column with the query's."""
    sharing = [np.flatnonzero(encoding[:, column]) for column in range(len(encoding))]
    result = np.zeros((num_query, len(encoding) - num_query), dtype=np.float32)
    for row in range(num_query):
        overlap = np.zeros(len(encoding), dtype=np.float32)
        for column in np.flatnonzero(encoding[row]):
            items = sharing[column]
            overlap[items] += np.minimum(encoding[row, column], encoding[items, column])
        result[row] = (1 - overlap / (2 - overlap))[num_query:]
    return result
