"""Rankings with modalities withheld: the six published cases, and every subset against every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from trireid.evaluation.applied_rule import applied_rule
from trireid.evaluation.evaluate import feature_distance, fused_spectra, unshared_by_feature
from trireid.evaluation.features import RANKED_FEATURES, FeatureSet
from trireid.evaluation.metrics import RankMetrics, rank_metrics
from trireid.evaluation.protocols import unmatched
from trireid.evaluation.ranking import Ranking

CaseMetrics = dict[str, dict[str, float | None]]
"""`{"global" | "head" | "joint": {"mAP": ..., ...}}` in [0, 1]; all None where a ranking would mean nothing."""

MANY = 7
"""More rankings than these are counted and not named."""

NO_METRICS: dict[str, float | None] = dict.fromkeys(("mAP", "mINP", "rank1", "rank5", "rank10"))


def rank_case(
    ranking: Ranking, *, device: torch.device | str = "cpu", names: Sequence[str] | None = None
) -> CaseMetrics:
    """Metrics of every pattern of a ranking whose sides may lack items.

    They are None where a side is empty, no query has a match, or no pair of query and gallery shares a block of the
    feature: all pairs would be equally far, and the order of the files would be the result.

    Args:
        ranking: what is ranked.
        device: where distances are computed.
        names: patterns to rank; None: those of the queries, which are not known where there are none.
    """
    return metrics_of(case_rankings(ranking, device=device, names=names))


def case_rankings(
    ranking: Ranking, *, device: torch.device | str = "cpu", names: Sequence[str] | None = None
) -> dict[str, RankMetrics | None]:
    """The same with the metrics of every query, None where `rank_case` has none. Args: as `rank_case`."""
    query, gallery, protocol = ranking.query.labels, ranking.gallery.labels, ranking.protocol
    has_match = not bool(unmatched(query, gallery, protocol).all())
    rankings: dict[str, RankMetrics | None] = {}
    for name in ranked_names(ranking.query.features) if names is None else names:
        rankings[name] = None
        if has_match and unshared_by_feature(ranking, name) < 1.0:
            distance = feature_distance(ranking, name, device=device)
            rankings[name] = rank_metrics(distance, query, gallery, protocol)
    return rankings


def metrics_of(rankings: Mapping[str, RankMetrics | None]) -> CaseMetrics:
    """The metrics of a case from those of its queries."""
    return {name: dict(NO_METRICS) if each is None else {**each.as_dict()} for name, each in rankings.items()}


def count_unmatched(ranking: Ranking) -> int:
    """Number of queries without a valid match in the gallery, which every metric leaves out."""
    return int(unmatched(ranking.query.labels, ranking.gallery.labels, ranking.protocol).sum())


def count_hidden(ranking: Ranking, *, num_unmatched: int) -> dict[str, Any]:
    """What the protocol hid among the items of a case, see `AppliedRule.as_dict`."""
    labels = ranking.query.labels, ranking.gallery.labels
    return applied_rule(*labels, ranking.protocol, num_unmatched=num_unmatched).as_dict()


def ranked_names(features: FeatureSet) -> list[str]:
    """The patterns that a set has; `joint` where it is more than `global`."""
    return [
        name
        for name in RANKED_FEATURES
        if name in features.features and (name != "joint" or "head" in features.features)
    ]


def rank_cases(cases: Mapping[str, Ranking], *, device: torch.device | str = "cpu") -> dict[str, CaseMetrics]:
    """Metrics of each case, the same modalities withheld from query and gallery. Args: as `rank_case`."""
    names = all_names(cases)
    return {name: rank_case(ranking, device=device, names=names) for name, ranking in cases.items()}


def mean_metrics(cases: Mapping[str, CaseMetrics]) -> CaseMetrics:
    """Mean of every metric over the cases that have it; None where none has."""

    def mean(name: str, metric: str) -> float | None:
        known = [value for case in cases.values() if (value := case[name][metric]) is not None]
        return fmean(known) if known else None

    first = next(iter(cases.values()))
    return {name: {metric: mean(name, metric) for metric in values} for name, values in first.items()}


def rank_any_to_any(
    cases: Mapping[str, Ranking], *, device: torch.device | str = "cpu"
) -> dict[str, dict[str, list[list[float | None]]]]:
    """Every case's queries in every case's gallery: `{feature: {"mAP": rows of queries by columns of galleries, ...}}`.

    The features of each case serve all pairs; if they are centred by camera, then by the gallery of their own case.
    Args: as `rank_case`.
    """
    names = all_names(cases)
    table: dict[str, dict[str, list[list[float | None]]]] = {}
    for pairs in _any_to_any(cases):
        row = [rank_case(ranking, device=device, names=names) for ranking in pairs]
        for name in names:
            for metric in ("mAP", "rank1"):
                table.setdefault(name, {}).setdefault(metric, []).append([each[name][metric] for each in row])
    return table


def count_any_to_any(cases: Mapping[str, Ranking]) -> dict[str, Any]:
    """`{"num_queries": [...], "num_gallery": [...], "num_unmatched": rows of queries by columns of galleries}`."""
    return {
        "num_queries": [len(ranking.query) for ranking in cases.values()],
        "num_gallery": [len(ranking.gallery) for ranking in cases.values()],
        "num_unmatched": [[count_unmatched(ranking) for ranking in pairs] for pairs in _any_to_any(cases)],
    }


def unfused(cases: Mapping[str, Ranking]) -> list[str]:
    """Where adaptive fusion has no effect in some cases, beside others: a line per reason and set of cases.

    Withholding can leave items that have the same modalities where those of the complete case differ, and can leave a
    single spectrum, which then has all the weight.
    """
    patterns: dict[tuple[str, str], list[str]] = {}
    for name in all_names(cases):
        spectra = {
            case: len(fused_spectra(ranking, name))
            for case, ranking in cases.items()
            if len(ranking.query) and len(ranking.gallery) and unshared_by_feature(ranking, name) < 1.0
        }
        for number, reason in enumerate(_NO_EFFECT):
            found = [case for case, own in spectra.items() if own == number]
            if found and len(found) < len(spectra):
                shown = ", ".join(found) if len(found) <= MANY else f"{len(found)} of {len(spectra)} rankings"
                patterns.setdefault((reason, shown), []).append(name)
    return [f"{reason}: {', '.join(names)} in {shown}" for (reason, shown), names in patterns.items()]


_NO_EFFECT = (
    "without adaptive fusion, since some items lack a spectrum",
    "adaptive fusion has no effect, since one spectrum is left, which has all the weight",
)
"""Why, by the number of spectra that are weighed."""


def unfused_pairs(cases: Mapping[str, Ranking]) -> list[str]:
    """The same for `rank_any_to_any`."""
    pairs = zip(cases, _any_to_any(cases), strict=True)
    return unfused({f"{own} to {other}": each for own, row in pairs for other, each in zip(cases, row, strict=True)})


def without_blocks(ranking: Ranking) -> Ranking:
    """The same items, compared by whole features."""
    sides = {name: replace(side, features=replace(side.features, blocks={})) for name, side in ranking.sides.items()}
    return replace(ranking, query=sides["query"], gallery=sides.get("gallery", sides["query"]))


def _any_to_any(cases: Mapping[str, Ranking]) -> list[list[Ranking]]:
    """Rankings by the case of the queries and by the case of the gallery."""
    return [[replace(one, gallery=other.gallery) for other in cases.values()] for one in cases.values()]


def all_names(cases: Mapping[str, Ranking]) -> list[str]:
    """The patterns of cases of which some may have no items."""
    return next(filter(None, (ranked_names(ranking.query.features) for ranking in cases.values())), [])
