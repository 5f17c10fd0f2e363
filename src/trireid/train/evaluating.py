"""Evaluation of a model on an opened split with the settings of a run, and its metrics as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader

from trireid.config.schema import EvaluateConfig
from trireid.data.records import DatasetIndex, Record
from trireid.evaluation.breakdown import break_down
from trireid.evaluation.centring import centred_by_camera
from trireid.evaluation.evaluate import EvaluationResult, evaluate_features
from trireid.evaluation.features import FeatureSet, RunModel, extract_features
from trireid.evaluation.ranking import Ranking, Rerank, Side
from trireid.train.gathering import gather_features
from trireid.train.inputs import EvaluationSplit, count_items
from trireid.train.progress import progress_bar
from trireid.train.run_files import EvaluationMetrics, Figures, RerankedMetrics
from trireid.types import UNKNOWN, Batch

SELECTION_FEATURES = ("joint", "global")
"""`best` is chosen by the mAP of the first of these features that the model has."""


def evaluate_split(
    model: nn.Module,
    split: EvaluationSplit,
    *,
    settings: EvaluateConfig,
    device: torch.device,
    dtype: torch.dtype | None,
    progress: bool,
    run: RunModel | None = None,
) -> EvaluationResult | None:
    """Extract the features of query and gallery, and rank every pattern; `describe_reranked` re-ranks.

    Where several processes share the split, all of them must call this: each extracts its part, and the main process
    ranks.

    Args:
        model: on `device`, not wrapped.
        split: query and gallery.
        settings: normalisation, centring by camera and withheld modalities; items without any other are excluded. The
            mean of `centring=train` is part of the model.
        device: where the model runs.
        dtype: autocast type; None: no autocast.
        progress: show a bar.
        run: how the model is run, as in `extract_features`.

    Returns:
        The result on the main process, None on all others.

    Raises:
        InputError: A feature is not finite, or no item of query or gallery is left.
        RunError: Another process had an error.
    """
    ranking = extract_split(
        model,
        split,
        settings=settings,
        device=device,
        dtype=dtype,
        progress=progress,
        withheld=settings.missing,
        run=run,
    )
    if ranking is None:
        return None
    result = evaluate_features(ranking, device=device, missing=settings.missing, missing_as=settings.missing_as)
    return replace(result, messages=(*split.messages, *centring_notes(settings, ranking), *result.messages))


def centring_notes(settings: EvaluateConfig, ranking: Ranking) -> list[str]:
    """What was subtracted from the features of a ranking, for every output."""
    if settings.centring == "train":
        return ["centred: the mean of the training features is subtracted (evaluate.centring=train)"]
    if settings.centring == "none":
        return []
    cameras, sizes = ranking.gallery.labels.camera.unique(return_counts=True)
    strange = ranking.query.labels.camera[~torch.isin(ranking.query.labels.camera, cameras)]
    of_queries = strange.unique(return_counts=True)[1]
    count, alone = len(sizes), int((sizes == 1).sum()) + int((of_queries == 1).sum())
    unknown = ranking.gallery.labels.camera == UNKNOWN
    more = f"; {int(unknown.sum())} items of unknown camera count as one camera" if bool(unknown.any()) else ""
    if len(strange):
        more += f"; {len(strange)} queries of cameras that the gallery lacks are centred by the queries of their camera"
    more += f"; with a single item, whose feature becomes 0: {alone}" if alone else ""
    return [
        f"centred by camera: the mean feature of each of {count} cameras of the gallery is subtracted, so the metrics "
        f"depend on the gallery as a whole (transductive; evaluate.centring=camera){more}"
    ]


def extract_split(
    model: nn.Module,
    split: EvaluationSplit,
    *,
    settings: EvaluateConfig,
    device: torch.device,
    dtype: torch.dtype | None,
    progress: bool,
    withheld: Sequence[str],
    run: RunModel | None = None,
) -> Ranking | None:
    """Extract the features of query and gallery with some modalities withheld.

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
            run=run,
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
    ranking = Ranking(
        query_side, gallery_side, split.protocol, settings.normalise, adaptive_fusion=settings.adaptive_fusion
    )
    return centred_by_camera(ranking) if settings.centring == "camera" else ranking


def describe_result(result: EvaluationResult) -> EvaluationMetrics:
    """The metrics of an evaluation and what a reader must know about them, as plain data for JSON."""
    return {
        "feature": result.metrics,
        "num_queries": result.num_queries,
        "num_gallery": result.num_gallery,
        "num_unmatched": result.num_unmatched,
        "rule": result.rule.as_dict(),
        "messages": list(result.messages),
        "verification": {
            "feature": result.verification.feature,
            "num_identity_pairs": result.verification.num_identity_pairs,
            "note": result.verification.note,
        },
    }


def describe_data(index: DatasetIndex) -> EvaluationMetrics:
    """The data set that was evaluated and its protocol, as plain data for JSON."""
    return {
        "data": str(index.root),
        "protocol": index.protocol.name,
        "exclude": index.protocol.exclude,
        "num_left_out": len(index.faults),
        "data_notes": list(index.notes),
    }


def describe_reranked(
    result: EvaluationResult, *, settings: EvaluateConfig, device: torch.device, by: Sequence[str] = ()
) -> EvaluationMetrics:
    """`{"reranked": ...}`: the metrics of the same features after k-reciprocal re-ranking; empty where it is off.

    Re-ranking takes far longer than the plain ranking and needs a table of all pairs of items. It is therefore done
    once, with the final features, and reported beside the plain metrics.

    Args:
        result: of the plain ranking.
        settings: of re-ranking.
        device: where distances are computed.
        by: columns of the queries that these metrics are broken down by as well.
    """
    if not settings.rerank:
        return {}
    rerank = Rerank(k1=settings.rerank_k1, k2=settings.rerank_k2, lambda_value=settings.rerank_lambda)
    again = evaluate_features(replace(result.source, rerank=rerank), device=device, missing=settings.missing)
    used = RerankedMetrics(k1=rerank.k1, k2=rerank.k2, lambda_value=rerank.lambda_value, feature=again.metrics)
    if by:
        used["by"] = break_down(again.rankings, result.source.query.records, by)
    return {"reranked": used}


def selection_feature(figures: Figures) -> str:
    """The feature whose mAP chooses `best`: pattern 3 (`joint`), or pattern 1 (`global`) without a head."""
    return next(name for name in SELECTION_FEATURES if name in figures)


def selection_score(figures: Figures) -> float:
    """The mAP that `best` is chosen by."""
    return figures[selection_feature(figures)]["mAP"]


def describe_figures(figures: Figures) -> str:
    """One line of text: mAP and rank 1 of every pattern, in percent."""
    parts = (f"{name} {100 * each['mAP']:.1f} mAP {100 * each['rank1']:.1f} R1" for name, each in figures.items())
    return ", ".join(parts)


def saved_features(result: EvaluationResult) -> Ranking:
    """The features and labels of an evaluation that reports and figures read, for `save_features`."""
    query = gallery = _numbered(result.source.query)
    if not result.source.query_is_gallery:
        gallery = _numbered(result.source.gallery)
    return replace(result.source, query=query, gallery=gallery)


def _numbered(side: Side) -> Side:
    """The same items, numbered from 0 without gaps."""
    return replace(side, features=replace(side.features, item=torch.arange(len(side))), num_left_out=0)
