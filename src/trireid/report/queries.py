"""Which queries a page shows: the easiest, the hardest, and those that are wrong with the most confidence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trireid.data.records import Record
from trireid.evaluation.evaluate import ranking_distance
from trireid.evaluation.metrics import RankMetrics, rank_metrics, ranked_list
from trireid.evaluation.protocols import ranking_masks, take
from trireid.evaluation.saved import SavedFeatures
from trireid.visualize.ranklist import RankEntry


@dataclass(frozen=True)
class ShownQuery:
    """One query and the first places of its list.

    Attributes:
        record: the query.
        average_precision: of its whole list.
        entries: its list, nearest first, excluded items not among them.
    """

    record: Record
    average_precision: float
    entries: tuple[RankEntry, ...]


def shown_queries(
    saved: SavedFeatures, *, feature: str = "joint", num_queries: int = 3, top: int = 8
) -> dict[str, list[ShownQuery]]:
    """The queries to show by reason: "easiest", "hardest", "confidently wrong".

    Easiest and hardest go by average precision; confidently wrong are those whose first place is wrong with the
    widest gap to the nearest right item. One query an identity, and no query twice.

    Args:
        saved: features, labels and records of query and gallery.
        feature: which feature ranks.
        num_queries: how many a reason, at most.
        top: places of each list.
    """
    gallery = None if saved.query_is_gallery else saved.gallery.features.features[feature]
    distance = ranking_distance(
        saved.query.features.features[feature], gallery, normalise=saved.normalise, rerank=saved.rerank
    )
    ranking = rank_metrics(distance, saved.query.labels, saved.gallery.labels, saved.protocol)
    chosen = _choose(ranking, _first_place_margin(distance, saved), saved.query.labels.identity, num_queries)
    return {reason: [_shown(saved, distance, ranking, row, top) for row in rows] for reason, rows in chosen.items()}


def _first_place_margin(distance: Tensor, saved: SavedFeatures) -> Tensor:
    """Distance of the nearest right item minus that of the nearest wrong one: `(Q,)`, positive if wrong is first."""
    matches, excluded = ranking_masks(saved.query.labels, saved.gallery.labels, saved.protocol)
    right = distance.masked_fill(~matches, torch.inf).amin(dim=1)
    wrong = distance.masked_fill(matches | excluded, torch.inf).amin(dim=1)
    return right - wrong


def _choose(ranking: RankMetrics, margin: Tensor, identity: Tensor, count: int) -> dict[str, list[int]]:
    """Query rows by reason."""
    precision = ranking.average_precision.tolist()
    matched = [row for row, value in enumerate(precision) if value == value]  # NaN is unmatched
    gaps, names = margin.tolist(), identity.tolist()
    orders = {
        "confidently wrong": sorted((row for row in matched if gaps[row] > 0), key=lambda row: (-gaps[row], row)),
        "hardest": sorted(matched, key=lambda row: (precision[row], -gaps[row], row)),
        "easiest": sorted(matched, key=lambda row: (-precision[row], gaps[row], row)),
    }
    used: set[int] = set()
    chosen: dict[str, list[int]] = {}
    for reason, order in orders.items():
        rows: list[int] = []
        for row in order:
            if len(rows) < count and row not in used and names[row] not in {names[other] for other in rows}:
                rows.append(row)
        used |= set(rows)
        chosen[reason] = rows
    return {reason: chosen[reason] for reason in ("easiest", "hardest", "confidently wrong")}


def _shown(saved: SavedFeatures, distance: Tensor, ranking: RankMetrics, row: int, top: int) -> ShownQuery:
    """One query with its list as `rank_metrics` counts it."""
    rows = slice(row, row + 1)
    places = ranked_list(distance[rows], take(saved.query.labels, rows), saved.gallery.labels, saved.protocol, top=top)
    entries = tuple(
        RankEntry(saved.gallery.records[index], matches, value)
        for index, matches, value in zip(
            places.index[0].tolist(), places.matches[0].tolist(), places.distance[0].tolist(), strict=True
        )
        if index >= 0
    )
    return ShownQuery(saved.query.records[row], float(ranking.average_precision[row]), entries)
