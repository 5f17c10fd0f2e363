"""k-reciprocal re-ranking: neighbours that name each other count, the others do not. Pure torch."""

from __future__ import annotations

import torch
from torch import Tensor

from trireid.errors import InputError
from trireid.evaluation.metrics import pairwise_distance


def k_reciprocal(
    query: Tensor,
    gallery: Tensor | None,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> Tensor:
    """Re-ranked distances of features: `(Q, D)`, `(G, D)` -> `(Q, G)` float32 in [0, 1].

    Args:
        query: features, normalised before if the ranking is on normalised features.
        gallery: features, or None where the queries are the gallery; each item then takes part once.
        k1, k2, lambda_value: as `k_reciprocal_distance`.

    Raises:
        InputError: a setting or shape is out of range.
    """
    if gallery is None:
        return _rerank(pairwise_distance(query, query), slice(None), slice(None), k1, k2, lambda_value)
    return k_reciprocal_distance(
        pairwise_distance(query, gallery),
        pairwise_distance(query, query),
        pairwise_distance(gallery, gallery),
        k1=k1,
        k2=k2,
        lambda_value=lambda_value,
    )


def k_reciprocal_distance(
    query_gallery: Tensor,
    query_query: Tensor,
    gallery_gallery: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> Tensor:
    """Re-ranked distances of Euclidean distances: `(Q, G)`, `(Q, Q)`, `(G, G)` -> `(Q, G)` float32 in [0, 1].

    Args:
        query_gallery, query_query, gallery_gallery: Euclidean distances, not squared.
        k1: neighbours that must name each other; more than there are items means all of them.
        k2: neighbours whose encodings are averaged (local query expansion); 1 switches it off.
        lambda_value: weight of the original distance, in [0, 1]; 1 keeps the original order.

    Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017, section 3.
    Deviation: an item always heads its own list of neighbours; among many equal images the published code may lose
        an item from its own list, which leaves it without an encoding. Ties keep the order query, gallery.

    Raises:
        InputError: a setting or shape is out of range.
    """
    num_query, num_gallery = query_gallery.shape
    square = {(num_query, num_query): query_query, (num_gallery, num_gallery): gallery_gallery}
    if any(tuple(matrix.shape) != shape for shape, matrix in square.items()):
        raise InputError(
            f"re-ranking got distances {tuple(query_gallery.shape)}, {tuple(query_query.shape)} and "
            f"{tuple(gallery_gallery.shape)}; allowed are (Q, G), (Q, Q) and (G, G)"
        )
    upper = torch.cat([query_query, query_gallery], dim=1)
    lower = torch.cat([query_gallery.T, gallery_gallery], dim=1)
    distance = torch.cat([upper, lower])  # (Q + G, Q + G)
    return _rerank(distance, slice(num_query), slice(num_query, None), k1, k2, lambda_value)


def _rerank(distance: Tensor, rows: slice, columns: slice, k1: int, k2: int, lambda_value: float) -> Tensor:
    """Re-ranked distances `(rows, columns)` of a set's own Euclidean distances `(N, N)`."""
    _check_settings(distance, k1, k2, lambda_value)
    squared = distance.float().square()
    squared = squared / squared.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    neighbours = _nearest(squared, max(k1 + 1, k2))  # (N, k)
    encoding = _encode(squared, neighbours, k1)  # (N, N)
    if k2 > 1:
        encoding = _expand(encoding, neighbours[:, :k2])
    jaccard = _jaccard_distance(encoding[rows], encoding[columns])
    return (1.0 - lambda_value) * jaccard + lambda_value * squared[rows, columns]


def _nearest(distance: Tensor, num_neighbours: int) -> Tensor:
    """The nearest items of each, itself first, ties by position: `(N, N)` -> `(N, k)` int64, k at most N."""
    itself_first = distance.clone().fill_diagonal_(-1.0)
    return itself_first.sort(dim=1, stable=True).indices[:, :num_neighbours].contiguous()


def _reciprocal(neighbours: Tensor) -> Tensor:
    """Which neighbours name the item as theirs: `(N, k)` -> `(N, k)` bool."""
    itself = torch.arange(len(neighbours), device=neighbours.device)[:, None, None]
    return (neighbours[neighbours] == itself).any(dim=-1)  # (N, k, k) -> (N, k)


def _encode(distance: Tensor, neighbours: Tensor, k1: int, *, chunk_size: int = 512) -> Tensor:
    """Weights of each item's expanded k-reciprocal set, rows summing to 1: `(N, N)`, `(N, k)` -> `(N, N)`.

    An item's reciprocal set takes in that of a member (at half of k1) when more than two thirds of it are
    already inside; weights are exp(-distance).
    """
    wide = neighbours[:, : k1 + 1]
    narrow = neighbours[:, : round(k1 / 2) + 1]
    wide_mutual, narrow_mutual = _reciprocal(wide), _reciprocal(narrow)
    encoding = torch.zeros_like(distance)
    for start in range(0, len(distance), chunk_size):
        rows = slice(start, start + chunk_size)
        member, is_member = wide[rows], wide_mutual[rows]  # (n, k)
        inside = torch.zeros_like(distance[rows], dtype=torch.bool).scatter_(1, member, is_member)  # (n, N)
        candidate, is_candidate = narrow[member], narrow_mutual[member]  # (n, k, h)
        known = inside.gather(1, candidate.flatten(1)).view_as(candidate) & is_candidate
        accepted = is_member & (3 * known.sum(dim=-1) > 2 * is_candidate.sum(dim=-1))  # (n, k)
        # amax, because one item may be offered by several members and refused by others.
        offered = (is_candidate & accepted[..., None]).flatten(1).to(distance.dtype)
        expanded = inside.to(distance.dtype).scatter_reduce_(1, candidate.flatten(1), offered, reduce="amax")
        weight = torch.exp(-distance[rows]) * expanded
        encoding[rows] = weight / weight.sum(dim=1, keepdim=True)
    return encoding


def _expand(encoding: Tensor, neighbours: Tensor) -> Tensor:
    """Local query expansion: each row becomes the mean of its neighbours' rows, `(N, N)`, `(N, k2)` -> `(N, N)`."""
    total = torch.zeros_like(encoding)
    for column in neighbours.unbind(dim=1):
        total += encoding[column]
    return total / neighbours.shape[1]


def _jaccard_distance(query: Tensor, gallery: Tensor) -> Tensor:
    """1 - sum of minima / sum of maxima of rows that sum to 1: `(Q, N)`, `(G, N)` -> `(Q, G)`."""
    by_item = gallery.T.contiguous()  # (N, G): a query reads only the rows where it is not zero
    overlap = query.new_empty(len(query), len(gallery))
    for row, encoding in enumerate(query):
        items = encoding.nonzero().flatten()
        overlap[row] = torch.minimum(encoding[items][:, None], by_item[items]).sum(dim=0)
    return 1.0 - overlap / (2.0 - overlap)


def _check_settings(distance: Tensor, k1: int, k2: int, lambda_value: float) -> None:
    """Raise InputError for settings without a meaning or distances that are not numbers."""
    if k1 < 1 or k2 < 1:
        raise InputError(f"re-ranking got k1={k1}, k2={k2}; both must be at least 1 (published: 20 and 6)")
    if not 0.0 <= lambda_value <= 1.0:
        raise InputError(f"re-ranking got lambda {lambda_value}; it must lie in [0, 1] (published: 0.3)")
    if not bool(distance.isfinite().all()):
        raise InputError("re-ranking got NaN or infinite distances; check the features")
