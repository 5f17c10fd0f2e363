"""Rankings over cases of withheld modalities: the six published ones, and every subset against every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from trireid.evaluation.applied_rule import applied_rule
from trireid.evaluation.evaluate import feature_distance, unshared_by_feature
from trireid.evaluation.features import RANKED_FEATURES, FeatureSet
from trireid.evaluation.metrics import rank_metrics
from trireid.evaluation.protocols import take, unmatched
from trireid.types import Labels, Protocol

Sides = tuple[FeatureSet, FeatureSet | None]
"""Features of query and gallery; gallery None where the queries are the gallery."""

Figures = dict[str, dict[str, float | None]]
"""`{"global" | "head" | "joint": {"mAP": ..., ...}}` in [0, 1]; all None where a ranking would say nothing."""

NO_FIGURES: dict[str, float | None] = dict.fromkeys(("mAP", "mINP", "rank1", "rank5", "rank10"))


def rank_case(
    query: FeatureSet,
    gallery: FeatureSet | None,
    *,
    query_labels: Labels,
    gallery_labels: Labels,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    normalise: bool = True,
    names: Sequence[str] | None = None,
) -> Figures:
    """Figures of every pattern; a set may lack items, which are then neither asked for nor found.

    There are none (None) where nothing is left of a side, no query has a match, or no pair of query and gallery shares
    a block of the feature: all would be equally far, and the order of the files would be the result.

    Args: as `evaluate_features`; both label sets are those of the whole split.
        names: patterns to rank; None: those of the queries, which are not known where there are none.
    """
    rows = take(query_labels, query.item)
    columns = rows if gallery is None else take(gallery_labels, gallery.item)
    has_match = not bool(unmatched(rows, columns, protocol).all())
    figures: Figures = {}
    for name in ranked_names(query) if names is None else names:
        if has_match and unshared_by_feature(query, query if gallery is None else gallery, name) < 1.0:
            distance = feature_distance(query, gallery, name, device=device, normalise=normalise)
            figures[name] = {**rank_metrics(distance, rows, columns, protocol).as_dict()}
        else:
            figures[name] = dict(NO_FIGURES)
    return figures


def count_unmatched(
    query: FeatureSet,
    gallery: FeatureSet | None,
    *,
    query_labels: Labels,
    gallery_labels: Labels,
    protocol: Protocol,
) -> int:
    """Queries without a valid match in the gallery, which every figure leaves out. Args: as `rank_case`."""
    rows = take(query_labels, query.item)
    columns = rows if gallery is None else take(gallery_labels, gallery.item)
    return int(unmatched(rows, columns, protocol).sum())


def count_hidden(
    query: FeatureSet,
    gallery: FeatureSet | None,
    *,
    query_labels: Labels,
    gallery_labels: Labels,
    protocol: Protocol,
    num_unmatched: int,
) -> dict[str, Any]:
    """What the protocol hid among the items of a case, see `AppliedRule.as_dict`. Args: as `count_unmatched`."""
    rows = take(query_labels, query.item)
    columns = rows if gallery is None else take(gallery_labels, gallery.item)
    return applied_rule(rows, columns, protocol, num_unmatched=num_unmatched).as_dict()


def ranked_names(features: FeatureSet) -> list[str]:
    """The patterns that a set has; `joint` where it is more than `global`."""
    return [
        name
        for name in RANKED_FEATURES
        if name in features.features and (name != "joint" or "head" in features.features)
    ]


def rank_cases(cases: Mapping[str, Sides], **settings: Any) -> dict[str, Figures]:
    """Figures of each case, the same modalities withheld from query and gallery. Settings: see `rank_case`."""
    names = _all_names(cases)
    return {name: rank_case(query, gallery, names=names, **settings) for name, (query, gallery) in cases.items()}


def mean_figures(figures: Mapping[str, Figures]) -> Figures:
    """Mean of every figure over the cases that have it; None where none has."""

    def mean(name: str, figure: str) -> float | None:
        known = [value for case in figures.values() if (value := case[name][figure]) is not None]
        return fmean(known) if known else None

    first = next(iter(figures.values()))
    return {name: {figure: mean(name, figure) for figure in values} for name, values in first.items()}


def rank_any_to_any(cases: Mapping[str, Sides], **settings: Any) -> dict[str, dict[str, list[list[float | None]]]]:
    """Every case's queries in every case's gallery: `{feature: {"mAP": rows of queries by columns of galleries, ...}}`.

    The features of each case serve all pairs. Settings: see `rank_case`.
    """
    names = _all_names(cases)
    table: dict[str, dict[str, list[list[float | None]]]] = {}
    for query, _ in cases.values():
        row = [rank_case(query, gallery, names=names, **settings) for gallery in _galleries(cases)]
        for name in names:
            for figure in ("mAP", "rank1"):
                table.setdefault(name, {}).setdefault(figure, []).append([each[name][figure] for each in row])
    return table


def count_any_to_any(cases: Mapping[str, Sides], **settings: Any) -> dict[str, Any]:
    """`{"num_queries": [...], "num_gallery": [...], "num_unmatched": rows of queries by columns of galleries}`.

    Settings: see `count_unmatched`.
    """
    galleries = _galleries(cases)
    return {
        "num_queries": [len(query) for query, _ in cases.values()],
        "num_gallery": [len(gallery) for gallery in galleries],
        "num_unmatched": [
            [count_unmatched(query, gallery, **settings) for gallery in galleries] for query, _ in cases.values()
        ],
    }


def _galleries(cases: Mapping[str, Sides]) -> list[FeatureSet]:
    """What is searched in each case."""
    return [query if gallery is None else gallery for query, gallery in cases.values()]


def _all_names(cases: Mapping[str, Sides]) -> list[str]:
    """The patterns of cases of which some may have no items."""
    return next(filter(None, (ranked_names(query) for query, _ in cases.values())), [])
