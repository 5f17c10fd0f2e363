"""A model on a split with modalities withheld: the table of missing modalities, and any subset against any other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from trireid.config.schema import Config
from trireid.errors import ConfigError
from trireid.evaluation.breakdown import break_down
from trireid.evaluation.evaluate import EvaluationResult
from trireid.evaluation.missing import subset_cases
from trireid.evaluation.ranking import Ranking
from trireid.evaluation.subsets import (
    CaseMetrics,
    all_names,
    case_rankings,
    count_any_to_any,
    count_hidden,
    count_unmatched,
    mean_metrics,
    metrics_of,
    rank_any_to_any,
    unfused,
    unfused_pairs,
)
from trireid.train.evaluating import extract_split
from trireid.train.inputs import EvaluationSplit
from trireid.train.run_files import AnyToAnyTable, MissingCase, MissingTable, SubsetTables
from trireid.typed_json import JsonObject


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
    by: Sequence[str] = (),
) -> SubsetTables:
    """Evaluate a model with modalities withheld. The features of each case are computed once and serve both tables.

    Where several processes share the split, all of them must call this. Each case excludes the items that have no
    other modality. With `evaluate.centring=camera`, each case is centred by the camera means of its own gallery, in the
    table of subsets against each other as well.

    Args:
        model, split, device, dtype, progress: as `evaluate_split`.
        result: of `evaluate_split` with nothing withheld; None on all processes but the main one.
        config: which modalities there are, and how to evaluate.
        missing: make the table of every case of withheld modalities, the same in query and gallery.
        any_to_any: make the table of every subset as query against every subset as gallery.
        by: columns of the queries that each case of the first table is broken down by.

    Returns:
        The tables that were requested; empty on all processes but the main one.
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
    tables: SubsetTables = {}
    if missing:
        tables["missing"] = _describe_missing(cases, rankings, device, missing_as=config.evaluate.missing_as, by=by)
    if any_to_any:
        tables["any_to_any"] = _describe_any_to_any(rankings, device, missing_as=config.evaluate.missing_as)
    return tables


def _describe_any_to_any(rankings: dict[str, Ranking], device: torch.device, *, missing_as: str) -> AnyToAnyTable:
    """The table of every subset against every other, see there."""
    counts = count_any_to_any(rankings)
    return {
        "missing_as": missing_as,
        "subsets": list(rankings),
        "num_queries": counts["num_queries"],
        "num_gallery": counts["num_gallery"],
        "num_unmatched": counts["num_unmatched"],
        "feature": rank_any_to_any(rankings, device=device),
        "notes": unfused_pairs(rankings),
    }


def check_cases(config: Config) -> None:
    """Raise ConfigError where the settings withhold modalities and a table of withheld modalities is requested."""
    if config.evaluate.missing:
        raise ConfigError(
            f"evaluate.missing (--missing) withholds {', '.join(config.evaluate.missing)}, but the tables over "
            "withheld modalities start from all of them: leave it out (evaluate.missing=[]), or the tables"
        )


def _describe_missing(
    cases: dict[str, tuple[str, ...]],
    rankings: dict[str, Ranking],
    device: torch.device,
    *,
    missing_as: str,
    by: Sequence[str],
) -> MissingTable:
    """The table of missing modalities, see there."""
    names = all_names(rankings)
    ranked: dict[str, CaseMetrics] = {}
    rows: dict[str, MissingCase] = {}
    rules: dict[str, JsonObject] = {}
    for shown, withheld in cases.items():
        ranking = rankings[shown]
        num_unmatched = count_unmatched(ranking)
        case = "".join(name[0] for name in withheld) or "none"
        found = case_rankings(ranking, device=device, names=names)
        ranked[shown] = metrics_of(found)
        rows[case] = {
            "num_queries": len(ranking.query),
            "num_gallery": len(ranking.gallery),
            "num_unmatched": num_unmatched,
            "feature": ranked[shown],
        }
        complete = {name: each for name, each in found.items() if each is not None}
        if by and complete:
            rows[case]["by"] = break_down(complete, ranking.query.records, by)
        rules[case] = count_hidden(ranking, num_unmatched=num_unmatched)
    smaller = {shown: ranked[shown] for shown, withheld in cases.items() if withheld}
    num_cases = {name: sum(each[name]["mAP"] is not None for each in smaller.values()) for name in names}
    return {
        "missing_as": missing_as,
        "cases": rows,
        "mean": mean_metrics(smaller) if smaller else {},
        "num_cases": num_cases,
        "rules": rules,
        "notes": unfused(dict(zip(rows, rankings.values(), strict=True))),
    }
