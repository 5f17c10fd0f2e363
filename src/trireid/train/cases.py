"""A model on a split with modalities withheld: the table of missing modalities, and any subset against any other."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trireid.config.schema import Config
from trireid.evaluation.cases import Sides, mean_figures, rank_any_to_any, rank_cases
from trireid.evaluation.evaluate import EvaluationResult
from trireid.evaluation.missing import subset_cases
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
        missing: every case of withheld modalities, the same in query and gallery, and the mean of all but the complete.
        any_to_any: every subset as query against every subset as gallery.

    Returns:
        `{"missing": {"cases": {letters withheld: {"num_queries", "num_gallery", "feature"}}, "mean": ...}}` and
        `{"any_to_any": {"subsets": [...], "feature": {name: {"mAP" | "rank1": rows of queries}}}}`, as far as asked
        for; empty on all processes but the main one.
    """
    cases = subset_cases(config.data.modalities)
    features: dict[str, Sides] = {}
    for shown, withheld in cases.items():
        if not withheld:
            gallery = None if result is None or split.gallery_labels is None else result.gallery
            extracted = None if result is None else (result.query, gallery)
        else:
            extracted = extract_split(
                model,
                split,
                settings=config.evaluate,
                device=device,
                dtype=dtype,
                progress=progress,
                withheld=withheld,
                leave_out_empty=True,
            )
        if extracted is not None:
            features[shown] = extracted
    if not features:
        return {}
    settings = {
        "query_labels": split.query_labels,
        "gallery_labels": split.query_labels if split.gallery_labels is None else split.gallery_labels,
        "protocol": split.protocol,
        "device": device,
        "normalise": config.evaluate.normalise,
    }
    described = _describe_missing(cases, features, settings) if missing else {}
    if any_to_any:
        described["any_to_any"] = {"subsets": list(features), "feature": rank_any_to_any(features, **settings)}
    return described


def _describe_missing(
    cases: dict[str, tuple[str, ...]], features: dict[str, Sides], settings: dict[str, Any]
) -> dict[str, Any]:
    """The `missing` entry, each case by the letters of what is withheld, `none` for nothing."""
    ranked = rank_cases(features, **settings)
    rows = {}
    for shown, withheld in cases.items():
        query, gallery = features[shown]
        rows["".join(name[0] for name in withheld) or "none"] = {
            "num_queries": len(query),
            "num_gallery": len(query if gallery is None else gallery),
            "feature": ranked[shown],
        }
    smaller = {shown: ranked[shown] for shown, withheld in cases.items() if withheld}
    return {"missing": {"cases": rows, "mean": mean_figures(smaller) if smaller else {}}}
