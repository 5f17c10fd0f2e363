"""Evaluation of a model on query and gallery: extract features once, rank every pattern, report the counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.evaluation.applied_rule import AppliedRule, applied_rule, unknown_messages
from trireid.evaluation.distance import check_features, check_widths, unit
from trireid.evaluation.features import RANKED_FEATURES, FeatureSet, extract_features
from trireid.evaluation.fusion import counted_pairs, fused_distance, spectra_of
from trireid.evaluation.metrics import RankMetrics, pairwise_distance, rank_metrics
from trireid.evaluation.presence import Presence, shared_distance, unrelated_cosine, unshared_pairs
from trireid.evaluation.ranking import Ranking, Rerank, Side
from trireid.evaluation.rerank import k_reciprocal
from trireid.evaluation.verification import Verification, false_non_match_rates, supported_rates
from trireid.names import MissingAs
from trireid.types import EXCLUSION_FIELD, UNKNOWN, Batch, Labels, Protocol


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation gives.

    Attributes:
        rankings: the full metrics by feature name.
        source: what was ranked.
        rule: what the protocol hid.
        messages: what a reader of the metrics must know, one line each.
        verification: false non-match rates by feature; none after re-ranking, whose distances depend on all items.
    """

    rankings: dict[str, RankMetrics]
    source: Ranking
    rule: AppliedRule
    messages: tuple[str, ...]
    verification: Verification = field(default_factory=Verification)

    @property
    def query(self) -> FeatureSet:
        """Features of the queries."""
        return self.source.query.features

    @property
    def gallery(self) -> FeatureSet:
        """Features of the gallery; the same object where the queries are the gallery."""
        return self.source.gallery.features

    @property
    def num_queries(self) -> int:
        """Number of queries, without those that withholding leaves no modality."""
        return len(self.source.query)

    @property
    def num_gallery(self) -> int:
        """Number of gallery items, without those that withholding leaves no modality."""
        return len(self.source.gallery)

    @property
    def num_unmatched(self) -> int:
        """Number of queries without any valid match; they are left out of the means."""
        return self.rule.num_unmatched

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics as plain numbers in [0, 1]: {"global" | "head" | "joint": {"mAP": ..., ...}}."""
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
    """Extract the features of query and gallery, one forward per batch, and rank each pattern.

    Args:
        model, device, dtype, transform, progress: see `extract_features`.
        query_loader, gallery_loader: batches whose `item` is the position in the labels. Gallery None: the queries
            are the gallery, and their features are computed once.
        query_labels, gallery_labels: `(Q,)` and `(G,)`; gallery None exactly where its loader is None.
        protocol, normalise, rerank: see `Ranking`.
        missing: modalities withheld from query and gallery; items that have no other are left out.
        ranks: CMC ranks to name.
        query_names, gallery_names: names of the items, for messages.

    Raises:
        InputError: loaders and labels do not fit, or features cannot be ranked.
    """
    if (gallery_loader is None) != (gallery_labels is None):
        raise InputError("give both a gallery loader and gallery labels, or neither (queries are the gallery)")

    def side(name: str, loader: Iterable[Batch], labels: Labels, names: Sequence[str] | None) -> Side:
        features = extract_features(
            model,
            loader,
            device=device,
            dtype=dtype,
            transform=transform,
            withheld=missing,
            names=names,
            progress=progress,
        )
        return Side.of_split(features, labels, name=name, withheld=missing)

    query = gallery = side("query", query_loader, query_labels, query_names)
    if gallery_loader is not None and gallery_labels is not None:
        gallery = side("gallery", gallery_loader, gallery_labels, gallery_names)
    ranking = Ranking(query, gallery, protocol, normalise, rerank)
    return evaluate_features(ranking, device=device, missing=missing, ranks=ranks)


def evaluate_features(
    ranking: Ranking,
    *,
    device: torch.device | str = "cpu",
    missing: Sequence[str] = (),
    missing_as: MissingAs = "absent",
    ranks: tuple[int, ...] = (1, 5, 10),
) -> EvaluationResult:
    """Rank features that are already there, each pattern.

    Args:
        ranking: what is ranked.
        device: where distances are computed.
        missing: modalities that were withheld from both sides, and `missing_as` how; both for the messages.
        ranks: CMC ranks to name.

    Raises:
        InputError: withholding left nothing of a side, a feature is not finite, or no query has a match.
    """
    for name, side in ranking.sides.items():
        _check_left(side, name, missing)
    query, gallery = ranking.query.labels, ranking.gallery.labels
    rankings, errors = {}, {}
    rates, verification = supported_rates(query, gallery)
    for name in RANKED_FEATURES:
        if name in ranking.query.features.features:
            distance = feature_distance(ranking, name, device=device)
            if rates and ranking.rerank is None:
                errors[name] = false_non_match_rates(distance, query, gallery, ranking.protocol, rates)
            rankings[name] = rank_metrics(distance, query, gallery, ranking.protocol, ranks=ranks)
    num_unmatched = next(iter(rankings.values())).num_unmatched
    messages = [
        *_withheld_messages(ranking, missing, missing_as),
        *_unmatched_messages(len(query), num_unmatched),
        *unknown_messages(query, gallery, ranking.protocol),
        *_rerank_messages(ranking.rerank),
        *_fusion_messages(ranking),
        *_presence_messages(ranking),
    ]
    rule = applied_rule(query, gallery, ranking.protocol, num_unmatched=num_unmatched)
    return EvaluationResult(rankings, ranking, rule, tuple(messages), replace(verification, feature=errors))


def feature_distance(ranking: Ranking, name: str, *, device: torch.device | str = "cpu") -> Tensor:
    """The distance `(Q, G)` by which one feature of a ranking is ranked."""
    query, gallery, presence = ranking.query.features, ranking.gallery.features, None
    spectra = fused_spectra(ranking, name)
    if spectra:
        return fused_distance(
            query.features[name].to(device),
            gallery.features[name].to(device),
            spectra,
            counted_pairs(ranking.query.labels, ranking.gallery.labels, scenes=_by_scene(ranking)).to(device),
            num_blocks=len(query.blocks[name]),
            power=ranking.adaptive_fusion,
        )
    if name in query.blocks:
        blocks, present = query.blocks[name], gallery.present.to(device)
        unrelated = unrelated_cosine(gallery.features[name].to(device), present, blocks)
        presence = Presence(blocks, query.present.to(device), present, unrelated)
    return ranking_distance(
        query.features[name].to(device),
        None if ranking.query_is_gallery else gallery.features[name].to(device),
        normalise=ranking.normalise,
        rerank=ranking.rerank,
        presence=presence,
    )


def fused_spectra(ranking: Ranking, name: str) -> dict[int, list[int]]:
    """The spectra that adaptive fusion weighs in a feature, as `fusion.spectra_of`; empty: compared without it.

    That is so where it is off, where a block of the feature mixes spectra, and where items of one side have different
    modalities.
    """
    query, gallery = ranking.query.features, ranking.gallery.features
    if not ranking.adaptive_fusion or not query.blocks.get(name):
        return {}
    first, second = query.present[:1], gallery.present[:1]
    if bool((query.present != first).any()) or bool((gallery.present != second).any()):
        return {}
    return spectra_of(query.blocks[name], (first & second)[0])


def _by_scene(ranking: Ranking) -> bool:
    """Whether the protocol hides pairs of one scene, which then have no part in adaptive fusion."""
    return EXCLUSION_FIELD.get(ranking.protocol.exclude) == "scene"


def ranking_distance(
    query: Tensor,
    gallery: Tensor | None,
    *,
    normalise: bool = True,
    rerank: Rerank | None = None,
    presence: Presence | None = None,
) -> Tensor:
    """The distance that is ranked: `(Q, D)`, `(G, D)` -> `(Q, G)` float32.

    Args:
        query, gallery: features; gallery None where the queries are the gallery.
        normalise: L2-normalise first. Only then is presence used: un-normalised features are compared as they are,
            including the zeros of absent modalities.
        rerank: re-ranking settings; None: not re-ranked.
        presence: which modalities the items have; where these differ, a pair is compared by what both items have
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


_ITEMS = {"query": "queries", "gallery": "gallery items"}
"""What messages call the items of a side."""


def _check_left(side: Side, name: str, missing: Sequence[str]) -> None:
    """Raise InputError if withholding left nothing of a side."""
    if missing and side.num_left_out and not len(side):
        raise InputError(
            f"all {side.num_left_out} {_ITEMS[name]} have nothing but {', '.join(missing)}, which evaluate.missing "
            "withholds: nothing is left to rank; withhold fewer"
        )


def unshared_by_feature(ranking: Ranking, name: str) -> float:
    """`presence.unshared_pairs` by one feature; 0 where it has no blocks and compares as a whole."""
    query, gallery = ranking.query.features, ranking.gallery.features
    return unshared_pairs(query.present, gallery.present, query.blocks[name]) if name in query.blocks else 0.0


def _withheld_messages(ranking: Ranking, missing: Sequence[str], missing_as: MissingAs) -> list[str]:
    """What was withheld and how, and how many items are left out because of it."""
    names = ", ".join(missing)
    shown = ", which the model sees as images of zeros (missing_as: zeros)" if missing_as == "zeros" else ""
    messages = [f"withheld from query and gallery: {names}{shown}"] if missing else []
    left_out = [
        f"{side.num_left_out} of {len(side) + side.num_left_out} {_ITEMS[name]}"
        for name, side in ranking.sides.items()
        if side.num_left_out
    ]
    if left_out:
        messages.append(f"{' and '.join(left_out)} have nothing but {names} and are left out")
    return messages


def _unmatched_messages(num_queries: int, num_unmatched: int) -> list[str]:
    """The number of queries that are left out of the means."""
    if not num_unmatched:
        return []
    return [
        f"{num_unmatched} of {num_queries} queries have no valid match in the gallery and are left out of the means"
    ]


def _rerank_messages(rerank: Rerank | None) -> list[str]:
    """The settings of re-ranking."""
    if rerank is None:
        return []
    return [f"re-ranked (k-reciprocal, k1 {rerank.k1}, k2 {rerank.k2}, lambda {rerank.lambda_value:g})"]


def _fusion_messages(ranking: Ranking) -> list[str]:
    """By what adaptive fusion weighs, which pairs count, and which features it leaves as they are."""
    if not ranking.adaptive_fusion:
        return []
    names = [name for name in RANKED_FEATURES if name in ranking.query.features.features]
    whole = [name for name in names if not fused_spectra(ranking, name)]
    own, cameras = ranking.query.labels.camera, ranking.gallery.labels.camera.unique()
    alone = int((own == cameras).sum()) if len(cameras) == 1 and int(cameras[0]) != UNKNOWN else 0
    more = f"; compared as without it, since spectra are mixed or items lack some: {', '.join(whole)}" if whole else ""
    if any(len(fused_spectra(ranking, name)) == 1 for name in names):
        more += "; the items share a single spectrum, which has all the weight"
    if bool((own == UNKNOWN).any()) or bool((cameras == UNKNOWN).any()):
        more += "; an unknown camera counts as another one"
    more += f"; {alone} queries have a gallery of their own camera alone, which then counts" if alone else ""
    return [
        "adaptive fusion: each query weighs its spectra by how far the best match of another "
        f"{'camera and scene' if _by_scene(ranking) else 'camera'} stands out, to the power of "
        f"{ranking.adaptive_fusion:g}, so the metrics depend on the gallery as a whole (evaluate.adaptive_fusion){more}"
    ]


def _presence_messages(ranking: Ranking) -> list[str]:
    """What a reader must know where items have different modalities."""
    query, gallery = ranking.query.features, ranking.gallery.features
    if Presence((), query.present, gallery.present).is_uniform:
        return []
    lacking = [
        f"{int((~side.features.present.all(dim=1)).sum())} of {len(side)} {_ITEMS[name]}"
        for name, side in ranking.sides.items()
    ]
    how = "are compared by what both have" if ranking.normalise and query.blocks else "count what is absent as zeros"
    messages = [f"{' and '.join(lacking)} lack a modality: pairs of items {how}"]
    shares = {name: unshared_by_feature(ranking, name) for name in RANKED_FEATURES}
    apart = [name for name, share in shares.items() if share]
    if apart:
        share, names = max(shares.values()), ", ".join(apart)
        meaning = "they are ranked as unrelated" if ranking.normalise else "their distances mean nothing"
        if share == 1.0:
            meaning = "the order of the files decides, and the metrics mean nothing"
        messages.append(f"{100 * share:.1f} % of the pairs of query and gallery share no modality ({names}): {meaning}")
    return messages
