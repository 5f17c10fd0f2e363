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
    similarity to the power of alpha; an item beyond a right angle has weight 0 unless alpha is 0. Labels are not
    looked at. Gallery features are expanded by giving them as the query and None as the gallery.

    Args:
        query: features; query and gallery are L2-normalised here.
        gallery: features, or None where the queries are the gallery; an item is then no neighbour of its own.
        num_neighbours: nearest items that count, ties by position; more than there are means all of them.
        alpha: 0 weighs all neighbours alike (average query expansion), above 0 the nearer ones more (alpha-QE).
        chunk_size: queries at a time, at most; bounds the memory beside the features to about 30 bytes x chunk_size
            x G and 8 bytes x chunk_size x num_neighbours x D.

    Source: Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2018, section 5.3;
        the plain average is of Chum et al., Total Recall, ICCV 2007.

    Raises:
        InputError: a setting or shape is out of range, or a feature is NaN or infinite.
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
