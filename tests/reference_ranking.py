"""Literal, slow definitions of the ranking figures and of k-reciprocal re-ranking, in plain loops."""

from __future__ import annotations

import numpy as np


def visible(query, gallery, row, exclude):
    """Gallery positions that a query may see."""
    kept = []
    for column in range(len(gallery["identity"])):
        if query["item"][row] == gallery["item"][column] != -1:
            continue
        if exclude == "cross_camera":
            if query["camera"][row] != gallery["camera"][column] or query["camera"][row] == -1:
                kept.append(column)
            continue
        same_identity = query["identity"][row] == gallery["identity"][column] != -1
        if exclude != "none" and same_identity and query[exclude][row] == gallery[exclude][column] != -1:
            continue
        kept.append(column)
    return kept


def ranked_columns(distance, query, gallery, row, exclude):
    """The filtered list of one query, nearest first, ties in gallery order."""
    return sorted(visible(query, gallery, row, exclude), key=lambda column: (distance[row][column], column))


def literal_metrics(distance, query, gallery, exclude, max_rank):
    """mAP, mINP, CMC curve, number of unmatched queries and each query's average precision (None if unmatched)."""
    precisions, penalties, first_ranks, per_query = [], [], [], []
    for row in range(len(query["identity"])):
        columns = ranked_columns(distance, query, gallery, row, exclude)
        right = [query["identity"][row] == gallery["identity"][c] != -1 for c in columns]
        if not any(right):
            per_query.append(None)
            continue
        found, total, last = 0, 0.0, 0
        for place, is_right in enumerate(right, start=1):
            if is_right:
                found += 1
                total += found / place
                last = place
        per_query.append(total / found)
        precisions.append(total / found)
        penalties.append(found / last)
        first_ranks.append(right.index(True) + 1)
    cmc = [np.mean([first <= rank for first in first_ranks]) for rank in range(1, max_rank + 1)]
    return {
        "mAP": np.mean(precisions),
        "mINP": np.mean(penalties),
        "cmc": np.array(cmc),
        "num_unmatched": per_query.count(None),
        "average_precision": per_query,
    }


def _neighbours(distance, item, number):
    """The nearest `number` items of one item, itself first, ties by position."""
    others = sorted((j for j in range(len(distance)) if j != item), key=lambda j: (distance[item][j], j))
    return [item, *others][:number]


def _reciprocal_set(distance, item, k):
    """Members of N(item, k) that have item among their own (the item itself is one of them)."""
    return [j for j in _neighbours(distance, item, k + 1) if item in _neighbours(distance, j, k + 1)]


def literal_k_reciprocal(query_gallery, query_query, gallery_gallery, k1, k2, lambda_value):
    """Zhong et al. 2017 in loops: encode, expand the query locally, Jaccard distance, mix."""
    num_query = len(query_query)
    full = np.block([[query_query, query_gallery], [query_gallery.T, gallery_gallery]]).astype(np.float64) ** 2
    full = full / full.max(axis=1, keepdims=True)
    encoding = literal_encoding(full, k1, k2)
    result = np.zeros(query_gallery.shape)
    for i in range(num_query):
        for j in range(num_query, len(full)):
            low = sum(min(a, b) for a, b in zip(encoding[i], encoding[j], strict=True))
            high = sum(max(a, b) for a, b in zip(encoding[i], encoding[j], strict=True))
            result[i, j - num_query] = (1 - lambda_value) * (1 - low / high) + lambda_value * full[i, j]
    return result


def literal_encoding(full, k1, k2):
    """The k-reciprocal encoding of every item of a square, row-normalised distance."""
    encoding = np.zeros(full.shape)
    for i in range(len(full)):
        members = _reciprocal_set(full, i, k1)
        expanded = set(members)
        for candidate in members:
            offered = _reciprocal_set(full, candidate, int(np.around(k1 / 2)))
            if len(set(offered) & set(members)) > 2 / 3 * len(offered):
                expanded |= set(offered)
        for j in expanded:
            encoding[i, j] = np.exp(-full[i, j])
        encoding[i] /= encoding[i].sum()
    return np.array([np.mean(encoding[_neighbours(full, i, k2)], axis=0) for i in range(len(full))])
