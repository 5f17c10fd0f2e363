"""Rankings over cases of withheld modalities: the six published ones, and every subset against every other."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch

from trireid.evaluation.evaluate import feature_distance
from trireid.evaluation.features import RANKED_FEATURES, FeatureSet
from trireid.evaluation.metrics import rank_metrics
from trireid.evaluation.protocols import take
from trireid.types import Labels, Protocol

Sides = tuple[FeatureSet, FeatureSet | None]
"""Features of query and gallery; gallery None where the queries are the gallery."""

Figures = dict[str, dict[str, float]]
"""`{"global" | "head" | "joint": {"mAP": ..., ...}}` in [0, 1]."""


def rank_case(
    query: FeatureSet,
    gallery: FeatureSet | None,
    *,
    query_labels: Labels,
    gallery_labels: Labels,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    normalise: bool = True,
) -> Figures:
    """Figures of every pattern; a set may lack items, which are then neither asked for nor found.

    Args: as `evaluate_features`; both label sets are those of the whole split.
    """
    rows = take(query_labels, query.item)
    columns = rows if gallery is None else take(gallery_labels, gallery.item)
    figures: Figures = {}
    for name in ranked_names(query):
        distance = feature_distance(query, gallery, name, device=device, normalise=normalise)
        figures[name] = rank_metrics(distance, rows, columns, protocol).as_dict()
    return figures


def ranked_names(features: FeatureSet) -> list[str]:
    """The patterns that a set has; `joint` where it is more than `global`."""
    return [
        name
        for name in RANKED_FEATURES
        if name in features.features and (name != "joint" or "head" in features.features)
    ]


def rank_cases(cases: Mapping[str, Sides], **settings: Any) -> dict[str, Figures]:
    """Figures of each case, the same modalities withheld from query and gallery. Settings: see `rank_case`."""
    return {name: rank_case(query, gallery, **settings) for name, (query, gallery) in cases.items()}


def mean_figures(figures: Mapping[str, Figures]) -> Figures:
    """Mean of every figure over cases."""
    first = next(iter(figures.values()))
    return {
        name: {figure: fmean(case[name][figure] for case in figures.values()) for figure in values}
        for name, values in first.items()
    }


def rank_any_to_any(cases: Mapping[str, Sides], **settings: Any) -> dict[str, dict[str, list[list[float]]]]:
    """Every case's queries in every case's gallery: `{feature: {"mAP": rows of queries by columns of galleries, ...}}`.

    The features of each case serve all pairs. Settings: see `rank_case`.
    """
    table: dict[str, dict[str, list[list[float]]]] = {}
    for query, _ in cases.values():
        row = [rank_case(query, same if gallery is None else gallery, **settings) for same, gallery in cases.values()]
        for name in ranked_names(query):
            for figure in ("mAP", "rank1"):
                table.setdefault(name, {}).setdefault(figure, []).append([each[name][figure] for each in row])
    return table
