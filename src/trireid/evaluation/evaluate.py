"""A model on its query and gallery: features once, every pattern ranked, counts said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.evaluation.applied_rule import AppliedRule, applied_rule, unknown_messages
from trireid.evaluation.distance import check_features, check_widths, unit
from trireid.evaluation.features import RANKED_FEATURES, FeatureSet, extract_features
from trireid.evaluation.metrics import RankMetrics, pairwise_distance, rank_metrics
from trireid.evaluation.missing import MissingAs
from trireid.evaluation.presence import Presence, shared_distance, unrelated_cosine, unshared_pairs
from trireid.evaluation.protocols import take
from trireid.evaluation.rerank import k_reciprocal
from trireid.types import Batch, Labels, Protocol


@dataclass(frozen=True)
class Rerank:
    """Settings of k-reciprocal re-ranking, see `rerank.k_reciprocal`."""

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation gives.

    Attributes:
        rankings: the full figures by feature name.
        query: features of the queries.
        gallery: features of the gallery; the same object where the queries are the gallery.
        num_queries, num_gallery: items of each set, without those that withholding leaves nothing of.
        num_unmatched: queries without any valid match, left out of the means.
        rule: what the protocol hid.
        messages: what the reader of the figures must know, one line each.
    """

    rankings: dict[str, RankMetrics]
    query: FeatureSet
    gallery: FeatureSet
    num_queries: int
    num_gallery: int
    num_unmatched: int
    rule: AppliedRule
    messages: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The figures as plain numbers in [0, 1]: {"global" | "head" | "joint": {"mAP": ..., ...}}."""
        return {name: ranking.as_dict() for name, ranking in self.rankings.items()}


def evaluate_model(
    model: nn.Module,
    query_loader: Iterable[Batch],
    gallery_loader: Iterable[Batch] | None,
    *,
    query_labels: Labels,
    gallery_labels: Labels | None,
    protocol: Protocol,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    transform: Callable[[Tensor, Tensor], Tensor] | None = None,
    normalise: bool = True,
    rerank: Rerank | None = None,
    missing: Sequence[str] = (),
    ranks: tuple[int, ...] = (1, 5, 10),
    query_names: Sequence[str] | None = None,
    gallery_names: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Extract the features of query and gallery, one forward a batch, and rank each pattern.

    Args:
        model: on `device`, see `extract_features`.
        query_loader, gallery_loader: batches whose `item` is the position in the labels. Gallery None: the queries
            are the gallery, and their features are computed once.
        query_labels, gallery_labels: `(Q,)` and `(G,)`; gallery None exactly where its loader is.
        protocol: which items a query must not see.
        device, dtype: where the model runs, and its autocast type (None: none).
        transform: see `extract_features`.
        normalise: L2-normalise the features before the Euclidean distance.
        rerank: re-ranking settings, None for none.
        missing: modalities withheld from query and gallery; items that have nothing else are left out.
        ranks: CMC ranks to name.
        query_names, gallery_names: names of the items, for messages.
        progress: called after each batch with the number of its items.

    Raises:
        InputError: loaders and labels do not fit, or features cannot be ranked.
    """
    if (gallery_loader is None) != (gallery_labels is None):
        raise InputError("give both a gallery loader and gallery labels, or neither (queries are the gallery)")

    def extract(loader: Iterable[Batch], names: Sequence[str] | None) -> FeatureSet:
        return extract_features(
            model,
            loader,
            device=device,
            dtype=dtype,
            transform=transform,
            withheld=missing,
            names=names,
            progress=progress,
        )

    query = extract(query_loader, query_names)
    gallery = None if gallery_loader is None else extract(gallery_loader, gallery_names)
    return evaluate_features(
        query,
        gallery,
        query_labels=query_labels,
        gallery_labels=gallery_labels,
        protocol=protocol,
        device=device,
        normalise=normalise,
        rerank=rerank,
        missing=missing,
        ranks=ranks,
    )


def evaluate_features(
    query: FeatureSet,
    gallery: FeatureSet | None,
    *,
    query_labels: Labels,
    gallery_labels: Labels | None,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    normalise: bool = True,
    rerank: Rerank | None = None,
    missing: Sequence[str] = (),
    missing_as: MissingAs = "absent",
    ranks: tuple[int, ...] = (1, 5, 10),
) -> EvaluationResult:
    """Rank features that are already there.

    Args: as `evaluate_model`; gallery None where queries are the gallery; labels are those of the whole split, of which
        the features lack what `missing` leaves nothing of; `missing_as` is for the messages.
    """
    left_out = _check_items(query, query_labels, "query", missing)
    query_labels = column_labels = take(query_labels, query.item)
    if gallery is not None and gallery_labels is not None:
        left_out += _check_items(gallery, gallery_labels, "gallery", missing)
        column_labels = take(gallery_labels, gallery.item)
    rankings: dict[str, RankMetrics] = {}
    for name in RANKED_FEATURES:
        if name in query.features:
            distance = feature_distance(query, gallery, name, device=device, normalise=normalise, rerank=rerank)
            rankings[name] = rank_metrics(distance, query_labels, column_labels, protocol, ranks=ranks)
    num_unmatched = next(iter(rankings.values())).num_unmatched
    return EvaluationResult(
        rankings=rankings,
        query=query,
        gallery=query if gallery is None else gallery,
        num_queries=len(query_labels),
        num_gallery=len(column_labels),
        num_unmatched=num_unmatched,
        rule=applied_rule(query_labels, column_labels, protocol, num_unmatched=num_unmatched),
        messages=tuple(
            [
                *_withheld_messages(missing, missing_as, left_out),
                *_unmatched_messages(len(query_labels), num_unmatched),
                *unknown_messages(query_labels, column_labels, protocol),
                *_rerank_messages(rerank),
                *_presence_messages(query, query if gallery is None else gallery, normalise),
            ]
        ),
    )


def feature_distance(
    query: FeatureSet,
    gallery: FeatureSet | None,
    name: str,
    *,
    device: torch.device | str = "cpu",
    normalise: bool = True,
    rerank: Rerank | None = None,
) -> Tensor:
    """The distance `(Q, G)` that is ranked of one feature of two sets; gallery None where queries are the gallery."""
    items, presence = query if gallery is None else gallery, None
    if name in query.blocks:
        blocks, present = query.blocks[name], items.present.to(device)
        unrelated = unrelated_cosine(items.features[name].to(device), present, blocks)
        presence = Presence(blocks, query.present.to(device), present, unrelated)
    return ranking_distance(
        query.features[name].to(device),
        None if gallery is None else gallery.features[name].to(device),
        normalise=normalise,
        rerank=rerank,
        presence=presence,
    )


def ranking_distance(
    query: Tensor,
    gallery: Tensor | None,
    *,
    normalise: bool = True,
    rerank: Rerank | None = None,
    presence: Presence | None = None,
) -> Tensor:
    """The distance that is ranked: `(Q, D)`, `(G, D)` -> `(Q, G)`.

    Args:
        query, gallery: features; gallery None where the queries are the gallery.
        normalise: L2-normalise first. Only then does presence count: un-normalised features compare as they are,
            the zeros of absent modalities with them.
        rerank: re-ranking settings, None for none.
        presence: what the items have; where they do not all have the same, pairs compare what both have
            (`presence.shared_distance`).
    """
    check_widths(query, query if gallery is None else gallery, name="a ranking")
    check_features(query, "query")
    if gallery is not None:
        check_features(gallery, "gallery")
    if presence is not None:
        presence.check(len(query), len(query if gallery is None else gallery), query.shape[1])
        if not normalise or presence.is_uniform:
            presence = None
    if normalise and presence is None:
        query = unit(query)
        gallery = None if gallery is None else unit(gallery)
    if rerank is not None:
        return k_reciprocal(
            query, gallery, k1=rerank.k1, k2=rerank.k2, lambda_value=rerank.lambda_value, presence=presence
        )
    items = query if gallery is None else gallery
    if presence is None:
        return pairwise_distance(query, items)
    sides = (presence.query, presence.gallery)
    return shared_distance(query, items, *sides, presence.blocks, unrelated=presence.unrelated)


def _check_items(features: FeatureSet, labels: Labels, side: str, missing: Sequence[str]) -> list[str]:
    """What withholding left out of a side, in words, empty for nothing.

    Raises:
        InputError: nothing is left, or there is not one feature for each (other) label, in order.
    """
    given, total = len(features), len(labels)
    items = {"query": "queries", "gallery": "gallery items"}[side]
    if missing and total and not given:
        raise InputError(
            f"all {total} {items} have nothing but {', '.join(missing)}, which evaluate.missing withholds: nothing is "
            "left to rank; withhold fewer"
        )
    known = torch.arange(total)
    if not torch.equal(features.item, known[torch.isin(known, features.item)] if missing else known):
        raise InputError(
            f"the {side} loader gave {len(features)} items for {len(labels)} labels; it must give each record "
            f"exactly once, numbered from 0"
        )
    return [f"{total - given} of {total} {items}"] if given < total else []


def unshared_by_feature(query: FeatureSet, gallery: FeatureSet, name: str) -> float:
    """`presence.unshared_pairs` by one feature; 0 where it has no blocks and compares as a whole."""
    return unshared_pairs(query.present, gallery.present, query.blocks[name]) if name in query.blocks else 0.0


def _withheld_messages(missing: Sequence[str], missing_as: MissingAs, left_out: Sequence[str]) -> list[str]:
    """What was withheld, how, and of what that left nothing."""
    names = ", ".join(missing)
    shown = ", which the model sees as images of zeros (missing_as: zeros)" if missing_as == "zeros" else ""
    messages = [f"withheld from query and gallery: {names}{shown}"] if missing else []
    if left_out:
        messages.append(f"{' and '.join(left_out)} have nothing but {names} and are left out")
    return messages


def _unmatched_messages(num_queries: int, num_unmatched: int) -> list[str]:
    """How many queries do not count."""
    if not num_unmatched:
        return []
    return [
        f"{num_unmatched} of {num_queries} queries have no valid match in the gallery and are left out of the means"
    ]


def _rerank_messages(rerank: Rerank | None) -> list[str]:
    """With what the ranking was re-ranked."""
    if rerank is None:
        return []
    return [f"re-ranked (k-reciprocal, k1 {rerank.k1}, k2 {rerank.k2}, lambda {rerank.lambda_value:g})"]


def _presence_messages(query: FeatureSet, gallery: FeatureSet, normalise: bool) -> list[str]:
    """What a reader must know where items have different modalities."""
    if Presence((), query.present, gallery.present).is_uniform:
        return []
    sides = (("queries", query), ("gallery items", gallery))
    lacking = [f"{int((~each.present.all(dim=1)).sum())} of {len(each)} {name}" for name, each in sides]
    if query is gallery:
        del lacking[1]
    how = "are compared by what both have" if normalise and query.blocks else "count what is absent as zeros"
    messages = [f"{' and '.join(lacking)} lack a modality: pairs of items {how}"]
    shares = {name: unshared_by_feature(query, gallery, name) for name in RANKED_FEATURES}
    apart = [name for name, share in shares.items() if share]
    if apart:
        share, names = max(shares.values()), ", ".join(apart)
        meaning = "they are ranked as unrelated" if normalise else "how far apart they are says nothing"
        if share == 1.0:
            meaning = "the order of the files decides, and the figures say nothing"
        messages.append(f"{100 * share:.1f} % of the pairs of query and gallery share no modality ({names}): {meaning}")
    return messages
