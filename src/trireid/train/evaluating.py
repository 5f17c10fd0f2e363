"""Evaluation of a model on a ready split, under the settings of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from trireid.config.schema import EvaluateConfig
from trireid.data.records import Record
from trireid.evaluation.evaluate import EvaluationResult, evaluate_features
from trireid.evaluation.features import FeatureSet, extract_features
from trireid.evaluation.ranking import Ranking, Rerank, Side
from trireid.train.checkpoint import Figures
from trireid.train.gathering import gather_features
from trireid.train.inputs import EvaluationSplit, count_items
from trireid.train.progress import progress_bar
from trireid.types import Batch

SELECTION_FEATURES = ("joint", "global")
"""What `best` is chosen by: the mAP of the first of these that the model has."""


def evaluate_split(
    model: nn.Module,
    split: EvaluationSplit,
    *,
    settings: EvaluateConfig,
    device: torch.device,
    dtype: torch.dtype | None,
    progress: bool,
) -> EvaluationResult | None:
    """Features of query and gallery once, every pattern ranked; re-ranking is `describe_reranked`.

    Where the split is shared, all its processes must call this: each extracts its part, the main process ranks.

    Args:
        model: on `device`, not wrapped.
        split: what is ranked.
        settings: normalisation, withheld modalities; items that these leave nothing of are left out.
        device: where it runs.
        dtype: autocast type, None for none.
        progress: show a bar.

    Returns:
        None on all processes but the main one.

    Raises:
        InputError: A feature is not finite, or withholding leaves no item of query or gallery.
        RunError: Another process met an error.
    """
    ranking = extract_split(
        model, split, settings=settings, device=device, dtype=dtype, progress=progress, withheld=settings.missing
    )
    if ranking is None:
        return None
    result = evaluate_features(ranking, device=device, missing=settings.missing, missing_as=settings.missing_as)
    return replace(result, messages=(*split.messages, *result.messages))


def extract_split(
    model: nn.Module,
    split: EvaluationSplit,
    *,
    settings: EvaluateConfig,
    device: torch.device,
    dtype: torch.dtype | None,
    progress: bool,
    withheld: Sequence[str],
) -> Ranking | None:
    """Query and gallery with their features, some modalities withheld.

    Args: as `evaluate_split` and `extract_features`. Returns None on all processes but the main one.
    """

    def extract(loader: DataLoader[Batch], records: Sequence[Record]) -> FeatureSet | None:
        own = partial(
            extract_features,
            model,
            loader,
            device=device,
            dtype=dtype,
            transform=split.transform,
            withheld=withheld,
            missing_as=settings.missing_as,
            names=[record.name for record in records],
            progress=bar.advance,
        )
        if split.num_shares == 1:
            return own()
        return gather_features(lambda: own() if count_items(loader) else None, device=device)

    title = f"evaluating {split.name}" + (f" without {', '.join(withheld)}" if withheld else "")
    with progress_bar(title, enabled=progress, total=split.num_items, transient=True) as bar:
        query = extract(split.query_loader, split.query_records)
        gallery = None if split.gallery_loader is None else extract(split.gallery_loader, split.gallery_records)
    if query is None:
        return None
    query_side = gallery_side = Side.of_split(
        query, split.query_labels, split.query_records, name="query", withheld=withheld
    )
    if gallery is not None and split.gallery_labels is not None:
        gallery_side = Side.of_split(
            gallery, split.gallery_labels, split.gallery_records, name="gallery", withheld=withheld
        )
    return Ranking(query_side, gallery_side, split.protocol, settings.normalise)


def describe_reranked(result: EvaluationResult, *, settings: EvaluateConfig, device: torch.device) -> dict[str, Any]:
    """`{"reranked": ...}`: the figures of the same features after k-reciprocal re-ranking; empty where it is off.

    It takes far longer than the plain ranking and a table of all items by all, so that it is made once, of the final
    features, and stands beside the plain figures.
    """
    if not settings.rerank:
        return {}
    rerank = Rerank(k1=settings.rerank_k1, k2=settings.rerank_k2, lambda_value=settings.rerank_lambda)
    again = evaluate_features(replace(result.source, rerank=rerank), device=device, missing=settings.missing)
    return {"reranked": {**asdict(rerank), "feature": again.metrics}}


def selection_feature(figures: Figures) -> str:
    """The feature whose mAP chooses `best`: pattern 3, or pattern 1 where there is nothing else."""
    return next(name for name in SELECTION_FEATURES if name in figures)


def selection_score(figures: Figures) -> float:
    """The mAP that `best` is chosen by."""
    return figures[selection_feature(figures)]["mAP"]


def describe_figures(figures: Figures) -> str:
    """One line for people: mAP and rank 1 of every pattern, in percent."""
    parts = (f"{name} {100 * each['mAP']:.1f} mAP {100 * each['rank1']:.1f} R1" for name, each in figures.items())
    return ", ".join(parts)


def saved_features(result: EvaluationResult) -> Ranking:
    """What pages and pictures need of an evaluation, to be written beside its metrics."""
    query = gallery = _numbered(result.source.query)
    if not result.source.query_is_gallery:
        gallery = _numbered(result.source.gallery)
    return replace(result.source, query=query, gallery=gallery)


def _numbered(side: Side) -> Side:
    """The same items numbered from 0, where withholding left some out."""
    return replace(side, features=replace(side.features, item=torch.arange(len(side))), num_left_out=0)
