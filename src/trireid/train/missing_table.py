"""A model on a split with modalities withheld: the table of missing modalities, and any subset against any other."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trireid.config.schema import Config
from trireid.errors import ConfigError
from trireid.evaluation.evaluate import EvaluationResult
from trireid.evaluation.missing import subset_cases
from trireid.evaluation.ranking import Ranking
from trireid.evaluation.subsets import (
    count_any_to_any,
    count_hidden,
    count_unmatched,
    mean_metrics,
    rank_any_to_any,
    rank_cases,
)
from trireid.train.evaluating import extract_split
from trireid.train.inputs import EvaluationSplit


def describe_cases(
    model: nn.Module,
    split: EvaluationSplit,
    result: EvaluationResult | None,
    *,
    config: Config,
    device: torch.device,
    dtype: torch.dtype | None,
    progress: bool,
    missing: bool,
    any_to_any: bool,
) -> dict[str, Any]:
    """Figures over cases of withheld modalities; features of each case are computed once and serve every table.

    Where the split is shared, all its processes must call this. Items that have nothing left in a case are left out of
    it.

    Args:
        model, split, device, dtype, progress: as `evaluate_split`.
        result: of `evaluate_split` with nothing withheld; None on all processes but the main one.
        config: which modalities there are, and how to evaluate.
        missing: every case of withheld modalities, the same in query and gallery, and the mean of all but the complete,
            of as many as have figures (`num_cases`).
        any_to_any: every subset as query against every subset as gallery.

    Returns:
        `{"missing": {"missing_as", "cases": {letters withheld: {"num_queries", "num_gallery", "num_unmatched",
        "feature"}}, "mean": ..., "num_cases": {name: ...}, "rules": {letters withheld: what the protocol hid}}}` and
        `{"any_to_any": {"missing_as", "subsets": [...], "num_queries": [...], "num_gallery": [...], "num_unmatched":
        rows, "feature": {name: {"mAP" | "rank1": rows of queries}}}}`, as far as asked for, figures None where
        `rank_case` has none; empty on all processes but the main one.
    """
    cases = subset_cases(config.data.modalities)
    rankings: dict[str, Ranking] = {}
    for shown, withheld in cases.items():
        if not withheld:
            extracted = None if result is None else result.source
        else:
            extracted = extract_split(
                model,
                split,
                settings=config.evaluate,
                device=device,
                dtype=dtype,
                progress=progress,
                withheld=withheld,
            )
        if extracted is not None:
            rankings[shown] = extracted
    if not rankings:
        return {}
    how = {"missing_as": config.evaluate.missing_as}
    described: dict[str, Any] = {}
    if missing:
        described["missing"] = how | _describe_missing(cases, rankings, device)
    if any_to_any:
        counts = count_any_to_any(rankings)
        table = rank_any_to_any(rankings, device=device)
        described["any_to_any"] = {**how, "subsets": list(rankings), **counts, "feature": table}
    return described


def check_cases(config: Config) -> None:
    """Raise ConfigError where tables over withheld modalities cannot start from all of them."""
    if config.evaluate.missing:
        raise ConfigError(
            f"evaluate.missing (--missing) withholds {', '.join(config.evaluate.missing)}, but the tables over "
            "withheld modalities start from all of them: leave it out (evaluate.missing=[]), or the tables"
        )


def _describe_missing(
    cases: dict[str, tuple[str, ...]], rankings: dict[str, Ranking], device: torch.device
) -> dict[str, Any]:
    """The content of the `missing` entry, each case by the letters of what is withheld, `none` for nothing."""
    ranked = rank_cases(rankings, device=device)
    rows, rules = {}, {}
    for shown, withheld in cases.items():
        ranking = rankings[shown]
        num_unmatched = count_unmatched(ranking)
        case = "".join(name[0] for name in withheld) or "none"
        rows[case] = {
            "num_queries": len(ranking.query),
            "num_gallery": len(ranking.gallery),
            "num_unmatched": num_unmatched,
            "feature": ranked[shown],
        }
        rules[case] = count_hidden(ranking, num_unmatched=num_unmatched)
    smaller = {shown: ranked[shown] for shown, withheld in cases.items() if withheld}
    names = next(iter(ranked.values()))
    num_cases = {name: sum(each[name]["mAP"] is not None for each in smaller.values()) for name in names}
    return {"cases": rows, "mean": mean_metrics(smaller) if smaller else {}, "num_cases": num_cases, "rules": rules}
