"""k-reciprocal re-ranking: only mutual nearest neighbours count. Pure torch, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trireid.errors import InputError
from trireid.evaluation.checks import check_distances, check_sizes
from trireid.evaluation.distance import (
    PAIR_ELEMENTS,
    Centred,
    centre_of,
    centred,
    check_features,
    check_widths,
    euclidean,
    squared_differences,
)
from trireid.evaluation.presence import Presence, shared_distance, shared_pair_distance
from trireid.evaluation.reciprocal import Distances, encode, expand, neighbourhoods, overlaps, part_of
from trireid.types import Blocks


def k_reciprocal(
    query: Tensor,
    gallery: Tensor | None,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    chunk_size: int = 512,
    presence: Presence | None = None,
) -> Tensor:
    """Re-ranked distances of features: `(Q, D)`, `(G, D)` -> `(Q, G)` float32 in [0, 1].

    No matrix of all pairs of items is held: distances are computed in blocks.

    Args:
        query: features; normalise them before if the ranking uses normalised features.
        gallery: features, or None where the queries are the gallery; each item then takes part once.
        k1: number of nearest neighbours that must be mutual; all items if there are fewer.
        k2: number of neighbours whose encodings are averaged (local query expansion); 1 switches it off.
        lambda_value: weight of the original distance, in [0, 1]; 1 keeps the original order.
        chunk_size: items at a time, at most; bounds the memory beside the result and the features in float64 to
            about 30 bytes x chunk_size x (Q + G).
        presence: which modalities the items have; the distances are then those of `presence.shared_distance`.

    Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017, section 3.
    Deviation: see `k_reciprocal_distance`.

    Raises:
        InputError: a setting or shape is out of range, a side is empty, or a feature is NaN, infinite or too long.

    Example:
        >>> query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
        >>> k_reciprocal(query, gallery, k1=1, k2=1).argsort(dim=1)  # gallery items, nearest first
        tensor([[0, 1, 2]])
    """
    check_widths(query, query if gallery is None else gallery, name="k_reciprocal")
    check_features(query, "query")
    if gallery is not None:
        check_features(gallery, "gallery")
    if gallery is not None and gallery.dtype != query.dtype:
        query, gallery = query.double(), gallery.double()
    features = query if gallery is None else torch.cat([query, gallery])
    distances: Distances = _OfFeatures(centred(features, centre_of(features)))
    if presence is not None:
        present = presence.query if gallery is None else torch.cat([presence.query, presence.gallery])
        distances = _OfShared(features, present, presence.blocks, presence.unrelated)
    columns = slice(0 if gallery is None else len(query), len(features))
    return _rerank(distances, slice(0, len(query)), columns, k1, k2, lambda_value, chunk_size)


def k_reciprocal_distance(
    query_gallery: Tensor,
    query_query: Tensor,
    gallery_gallery: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    chunk_size: int = 512,
) -> Tensor:
    """Re-ranked distances of Euclidean distances: `(Q, G)`, `(Q, Q)`, `(G, G)` -> `(Q, G)` float32 in [0, 1].

    Args:
        query_gallery, query_query, gallery_gallery: Euclidean distances, not squared.
        k1, k2, lambda_value, chunk_size: as `k_reciprocal`.

    Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017, section 3.
    Deviation: an item always heads its own list of neighbours; among many equal images the published code may lose
        an item from its own list, which leaves it without an encoding. Ties keep the order query, gallery.

    Raises:
        InputError: a setting or shape is out of range.
    """
    check_distances("re-ranking", query_gallery, query_query, gallery_gallery)
    if query_gallery.ndim != 2:
        raise InputError(f"re-ranking got distances {tuple(query_gallery.shape)}; allowed are (Q, G)")
    num_query, num_gallery = query_gallery.shape
    square = {(num_query, num_query): query_query, (num_gallery, num_gallery): gallery_gallery}
    if any(tuple(matrix.shape) != shape for shape, matrix in square.items()):
        raise InputError(
            f"re-ranking got distances {tuple(query_gallery.shape)}, {tuple(query_query.shape)} and "
            f"{tuple(gallery_gallery.shape)}; allowed are (Q, G), (Q, Q) and (G, G)"
        )
    if not all(bool(((matrix >= 0) & (matrix < torch.inf)).all()) for matrix in (query_gallery, *square.values())):
        raise InputError("re-ranking got distances that are negative, NaN or infinite; check the features")
    distances = _OfMatrices(query_gallery, query_query, gallery_gallery)
    rows, columns = slice(0, num_query), slice(num_query, num_query + num_gallery)
    return _rerank(distances, rows, columns, k1, k2, lambda_value, chunk_size)


def _rerank(
    distances: Distances, rows: slice, columns: slice, k1: int, k2: int, lambda_value: float, chunk_size: int
) -> Tensor:
    """Re-ranked distances `(rows, columns)` of the Euclidean distances of a set to itself."""
    _check_settings(k1, k2, lambda_value, chunk_size)
    counts = rows.stop - rows.start, columns.stop - columns.start
    if not all(counts):
        raise InputError(
            f"re-ranking got {counts[0]} queries and {counts[1]} gallery items; there must be some of each"
        )
    neighbours, largest = neighbourhoods(distances, max(k1 + 1, k2), chunk_size=chunk_size)
    if not bool(largest.isfinite().all()):
        raise InputError("re-ranking got NaN or infinite distances; check the features")
    largest = largest.clamp(min=torch.finfo(torch.float32).tiny ** 0.5)  # its square is not 0
    encoding = encode(distances, neighbours, largest, k1=k1, chunk_size=chunk_size)
    if k2 > 1:
        encoding = expand(encoding, neighbours[:, :k2], chunk_size=chunk_size)
    result = torch.empty(counts, device=distances.device)
    for part, overlap in overlaps(part_of(encoding, rows), part_of(encoding, columns), distances.num_items):
        squared = (distances.block(part, columns) / largest[part, None]).square_()
        jaccard = 1.0 - overlap / (2.0 - overlap)
        result[part] = torch.add(jaccard.mul_(1.0 - lambda_value), squared, alpha=lambda_value)
    return result


@dataclass(frozen=True)
class _OfMatrices:
    """Distances that are given: queries are the first items, the gallery follows."""

    query_gallery: Tensor
    query_query: Tensor
    gallery_gallery: Tensor

    @property
    def num_items(self) -> int:
        return sum(self.query_gallery.shape)

    @property
    def device(self) -> torch.device:
        return self.query_gallery.device

    def block(self, rows: slice, columns: slice) -> Tensor:
        num_query, num_items = len(self.query_query), self.num_items
        result = torch.empty(rows.stop - rows.start, columns.stop - columns.start, device=self.device)
        for above, row_part in ((True, slice(0, num_query)), (False, slice(num_query, num_items))):
            for left, column_part in ((True, slice(0, num_query)), (False, slice(num_query, num_items))):
                here, inside = _common(rows, row_part)
                there, across = _common(columns, column_part)
                lower = self.query_gallery.T if left else self.gallery_gallery
                upper = self.query_query if left else self.query_gallery
                result[here, there] = (upper if above else lower)[inside, across]
        return result

    def pairs(self, row: Tensor, column: Tensor) -> Tensor:
        num_query = len(self.query_query)
        first, second = torch.minimum(row, column), torch.maximum(row, column)
        mixed = self.query_gallery[first.clamp(max=num_query - 1), (second - num_query).clamp(min=0)]
        among_query = self.query_query[row.clamp(max=num_query - 1), column.clamp(max=num_query - 1)]
        among_gallery = self.gallery_gallery[(row - num_query).clamp(min=0), (column - num_query).clamp(min=0)]
        return torch.where(
            second < num_query, among_query, torch.where(first < num_query, mixed, among_gallery)
        ).float()


@dataclass(frozen=True)
class _OfFeatures:
    """Distances that are computed on demand."""

    features: Centred

    @property
    def num_items(self) -> int:
        return len(self.features)

    @property
    def device(self) -> torch.device:
        return self.features.norm.device

    def block(self, rows: slice, columns: slice) -> Tensor:
        return euclidean(self.features[rows], self.features[columns])

    def pairs(self, row: Tensor, column: Tensor) -> Tensor:
        features = self.features.features
        return squared_differences(features, features, row, column).sqrt_().float()


@dataclass(frozen=True)
class _OfShared:
    """Distances of items that lack different modalities, computed on demand."""

    features: Tensor
    present: Tensor
    blocks: Blocks
    unrelated: float

    @property
    def num_items(self) -> int:
        return len(self.features)

    @property
    def device(self) -> torch.device:
        return self.features.device

    def block(self, rows: slice, columns: slice) -> Tensor:
        features, present = self.features, self.present
        parts = features[rows], features[columns], present[rows], present[columns]
        return shared_distance(*parts, self.blocks, unrelated=self.unrelated)

    def pairs(self, row: Tensor, column: Tensor) -> Tensor:
        features, present = self.features, self.present
        parts = [
            shared_pair_distance(
                features[one], features[two], present[one], present[two], self.blocks, unrelated=self.unrelated
            )
            for one, two in _some(row, column, features)
        ]
        return torch.cat(parts)


def _some(row: Tensor, column: Tensor, features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs, as many at a time as may be read at once of features `(n, D)`."""
    size = max(1, PAIR_ELEMENTS // max(1, features.shape[1]))
    return zip(row.split(size), column.split(size), strict=True)


def _common(needed: slice, held: slice) -> tuple[slice, slice]:
    """The common part of two slices: its place in the needed one, and in the one that is held."""
    start = min(max(needed.start, held.start), needed.stop)
    stop = max(min(needed.stop, held.stop), start)
    return slice(start - needed.start, stop - needed.start), slice(start - held.start, stop - held.start)


def _check_settings(k1: int, k2: int, lambda_value: float, chunk_size: int) -> None:
    """Raise InputError for settings out of range."""
    check_sizes("re-ranking", k1=k1, k2=k2, chunk_size=chunk_size)
    if not 0.0 <= lambda_value <= 1.0:
        raise InputError(f"re-ranking got lambda {lambda_value}; it must lie in [0, 1] (published: 0.3)")
