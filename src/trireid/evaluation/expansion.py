"""Query expansion: a query moves towards its nearest gallery items before it is ranked."""

from __future__ import annotations

import torch
from torch import Tensor

from trireid.errors import InputError
from trireid.evaluation.checks import check_sizes
from trireid.evaluation.distance import centre_of, centred, check_features, check_widths, euclidean, unit
from trireid.evaluation.nearest import nearest, row_slices, rows_at_a_time


def average_query_expansion(
    query: Tensor,
    gallery: Tensor | None,
    *,
    num_neighbours: int = 10,
    alpha: float = 3.0,
    chunk_size: int = 256,
) -> Tensor:
    """Expanded queries at unit length: `(Q, D)`, `(G, D)` -> `(Q, D)` float32, to be ranked in place of the queries.

    A query becomes the weighted mean of itself (weight 1) and its nearest items, each weighted by its cosine
    similarity to the power of alpha; an item of negative similarity has weight 0 unless alpha is 0. Labels are
    not used. To expand the features of a gallery, pass them as the query and None as the gallery.

    Args:
        query: features; query and gallery are L2-normalised here.
        gallery: features, or None where the queries are the gallery; an item is then not a neighbour of itself.
        num_neighbours: number of nearest items that count, at least 1, ties by position; all items if there are fewer.
        alpha: at least 0. With 0 all neighbours have equal weight (average query expansion); above 0, nearer
            neighbours weigh more (alpha-QE).
        chunk_size: queries at a time, at most; bounds the memory beside the features to about 30 bytes x chunk_size
            x G and 8 bytes x chunk_size x num_neighbours x D.

    Source: Chum et al., Total Recall, ICCV 2007 (average query expansion); Radenovic et al., Fine-tuning CNN Image
        Retrieval with No Human Annotation, TPAMI 2018, section 5.3 (the weights by similarity).

    Raises:
        InputError: a setting or shape is out of range, or a feature is NaN or infinite.

    Example:
        >>> query = torch.tensor([[1.0, 0.0]])
        >>> gallery = torch.tensor([[0.6, 0.8], [0.0, -1.0]])
        >>> expanded = average_query_expansion(query, gallery, num_neighbours=1, alpha=0.0)
        >>> [round(value, 3) for value in expanded[0].tolist()]  # halfway between the query and its neighbour
        [0.894, 0.447]
    """
    check_widths(query, query if gallery is None else gallery, name="average_query_expansion")
    check_sizes("query expansion", num_neighbours=num_neighbours, chunk_size=chunk_size)
    if not 0.0 <= alpha < float("inf"):
        raise InputError(f"query expansion got alpha={alpha:g}; it must be at least 0 and finite (published: 3)")
    query = _unit(query, "query")
    items = query if gallery is None else _unit(gallery, "gallery")
    centre = centre_of(items)
    columns = centred(items, centre)
    num_neighbours = min(num_neighbours, len(items) - (gallery is None))
    parts = [query[:0]]
    for rows in row_slices(len(query), rows_at_a_time(chunk_size, len(items), query.device)):
        distance = euclidean(centred(query[rows], centre), columns)  # (n, G)
        if gallery is None:
            distance.diagonal(rows.start).fill_(torch.inf)
        neighbour = items[nearest(distance, num_neighbours)]  # (n, k, D)
        weight = torch.einsum("nd,nkd->nk", query[rows], neighbour).clamp_(min=0.0) ** alpha
        parts.append(query[rows] + (weight[:, :, None] * neighbour).sum(dim=1))
    return unit(torch.cat(parts))


def _unit(features: Tensor, side: str) -> Tensor:
    """Features at unit length, float32."""
    check_features(features, side)
    return unit(features)
