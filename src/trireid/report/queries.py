"""Which queries are shown: the easiest, the hardest, and those that are wrong with the most confidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trireid.data.records import Record
from trireid.errors import InputError
from trireid.evaluation.evaluate import feature_distance
from trireid.evaluation.metrics import RankMetrics, rank_metrics, ranked_list
from trireid.evaluation.protocols import ranking_masks, take
from trireid.evaluation.ranking import Ranking, Side
from trireid.visualize.ranklist import RankEntry

FEATURE = "joint"


@dataclass(frozen=True)
class ShownQuery:
    """One query and the first places of its list.

    Attributes:
        record: the query.
        average_precision: of its whole list, NaN without a match.
        num_right: right items in its whole list.
        entries: its list, nearest first, excluded items not among them.
    """

    record: Record
    average_precision: float
    num_right: int
    entries: tuple[RankEntry, ...]

    @property
    def found(self) -> str:
        """How many of its right items the first places hold, without which wrong places beside 100 % look odd."""
        right = sum(entry.matches for entry in self.entries)
        return f"{right} of {self.num_right} right items in the first {len(self.entries)} places"


@dataclass(frozen=True)
class Ranked:
    """Saved features ranked by one of them.

    Attributes:
        saved: features, labels and records of query and gallery.
        distance: `(Q, G)`.
        ranking: its metrics.
    """

    saved: Ranking
    distance: Tensor
    ranking: RankMetrics

    def shown(self, row: int, *, top: int = 8) -> ShownQuery:
        """One query with its list as `rank_metrics` counts it."""
        saved, rows = self.saved, slice(row, row + 1)
        query = take(saved.query.labels, rows)
        places = ranked_list(self.distance[rows], query, saved.gallery.labels, saved.protocol, top=top)
        entries = tuple(
            RankEntry(saved.gallery.records[index], matches, value)
            for index, matches, value in zip(
                places.index[0].tolist(), places.matches[0].tolist(), places.distance[0].tolist(), strict=True
            )
            if index >= 0
        )
        matches, _ = ranking_masks(query, saved.gallery.labels, saved.protocol)  # (1, G)
        precision = float(self.ranking.average_precision[row])
        return ShownQuery(saved.query.records[row], precision, int(matches.sum()), entries)


def rank_saved(saved: Ranking, *, feature: str = FEATURE) -> Ranked:
    """Rank saved features.

    Raises:
        InputError: there is no such feature, or no query has a match.
    """
    for side in (saved.query, saved.gallery):
        feature_of(side, feature)
    distance = feature_distance(saved, feature)
    return Ranked(saved, distance, rank_metrics(distance, saved.query.labels, saved.gallery.labels, saved.protocol))


def feature_of(side: Side, feature: str) -> Tensor:
    """One feature of a side, `(n, D)`.

    Raises:
        InputError: there is no such feature.
    """
    known = side.features.features
    if feature not in known:
        raise InputError(f"feature {feature!r} is not among the saved ones; allowed are {', '.join(known)}")
    return known[feature]


def shown_queries(ranked: Ranked, *, num_queries: int = 3, top: int = 8) -> dict[str, list[ShownQuery]]:
    """The queries to show by reason: "easiest", "hardest", "confidently wrong".

    Easiest and hardest go by average precision; confidently wrong are those whose first place is wrong with the
    widest gap to the nearest right item. One query per identity, and no query twice.

    Args:
        ranked: a ranking.
        num_queries: how many a reason, at most.
        top: places of each list.
    """
    chosen = _choose(ranked.ranking, _first_place_margin(ranked), ranked.saved.query.labels.identity, num_queries)
    return {reason: [ranked.shown(row, top=top) for row in rows] for reason, rows in chosen.items()}


def differing_queries(runs: Mapping[str, Ranked], *, num_queries: int = 4) -> list[str]:
    """Names of the queries whose average precision differs most between runs, one per identity.

    Args:
        runs: two or more, by name.
        num_queries: how many, at most; queries on which all agree are not among them.
    """
    precision = [query_precision(ranked) for ranked in runs.values()]
    common = [name for name in precision[0] if all(name in other for other in precision)]
    spread = {name: max(each[name] for each in precision) - min(each[name] for each in precision) for name in common}
    identity = {record.name: record.identity for record in next(iter(runs.values())).saved.query.records}
    shown: list[str] = []
    for name in sorted(spread, key=lambda name: (-spread[name], name)):
        if spread[name] > 0 and identity[name] not in {identity[other] for other in shown}:
            shown.append(name)
    return shown[:num_queries]


def query_precision(ranked: Ranked) -> dict[str, float]:
    """Average precision of each query that has a match, by the name of its record."""
    values = ranked.ranking.average_precision.tolist()
    names = (record.name for record in ranked.saved.query.records)
    return {name: value for name, value in zip(names, values, strict=True) if value == value}  # NaN is unmatched


def _first_place_margin(ranked: Ranked) -> Tensor:
    """Distance of the nearest right item minus that of the nearest wrong one: `(Q,)`, positive if wrong is first."""
    saved, distance = ranked.saved, ranked.distance
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
