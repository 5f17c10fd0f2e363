"""Centring: the part that all features share, their mean, is subtracted before they are compared.

The mean is one of the training features, which belongs to the model (`models/centre.py`), or one for each camera of the
gallery. The second uses the gallery as a whole (it is transductive), needs no identities, and takes away what a camera
adds to all of its features. Shapes: n items, K blocks, C groups, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trireid.evaluation.features import JOINED_FEATURES, FeatureSet
from trireid.evaluation.ranking import Ranking, Side
from trireid.models.centre import FeatureCentre, subtract_means
from trireid.types import MODALITIES, Blocks, filled_blocks

WHOLE: Blocks = (tuple(range(len(MODALITIES))),)
"""The blocks of a feature that is compared as a whole."""


def block_means(features: Tensor, filled: Tensor, group: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """The mean of each block over the items of each group that have it.

    Args:
        features: `(n, D)`, 0 where a block is not filled.
        filled: `(n, K)` bool.
        group: `(n,)` int64 below `num_groups`.
        num_groups: C.

    Returns:
        Means `(C, D)` float64, 0 where no item has the block; and the number of items `(C, K)`.

    Example:
        >>> features = torch.tensor([[1.0, 5.0], [3.0, 0.0]])
        >>> filled = torch.tensor([[True, True], [True, False]])
        >>> block_means(features, filled, torch.zeros(2, dtype=torch.int64), 1)[0].tolist()
        [[2.0, 5.0]]
    """
    num_blocks = filled.shape[1]
    count = torch.zeros(num_groups, num_blocks, dtype=torch.int64).index_add_(0, group, filled.long())
    parts = features.double().unflatten(1, (num_blocks, -1)) * filled[..., None]  # (n, K, D / K)
    total = torch.zeros(num_groups, *parts.shape[1:], dtype=torch.float64).index_add_(0, group, parts)
    return (total / count.clamp(min=1)[..., None]).flatten(1), count


def centred_by_means(ranking: Ranking, means: Mapping[str, Tensor]) -> Ranking:
    """The ranking with given means of `global` and `head` subtracted, as a model with a centre gives it.

    Args:
        ranking: of features that are not centred.
        means: `(D,)` by name, such as `Checkpoint.centre`.
    """
    centre = FeatureCentre(means)

    def centred(side: Side) -> Side:
        own = side.features
        blocks = {name: _blocks_of(own, name) for name in means}
        return _with_features(side, centre(own.features, blocks=blocks, present=own.present))

    query = centred(ranking.query)
    return replace(ranking, query=query, gallery=query if ranking.query_is_gallery else centred(ranking.gallery))


def centred_by_camera(ranking: Ranking) -> Ranking:
    """The ranking with the mean of each camera of the gallery subtracted from its items, in query and gallery.

    Each block of a feature has a mean of its own, over the items that have it. Queries of a camera that the gallery
    lacks are centred by the queries of that camera. Items of unknown camera are one group.

    With modalities withheld, the means are those of the gallery's features without them. Where a query of one subset is
    ranked in a gallery of another (`rank_any_to_any`), each side keeps the means of its own subset.
    """
    query, gallery = ranking.query, ranking.gallery
    codes, group = torch.cat([query.labels.camera, gallery.labels.camera]).unique(return_inverse=True)
    of_query, of_gallery = group.split([len(query), len(gallery)])

    def centred(name: str) -> tuple[Tensor, Tensor]:
        blocks = _blocks_of(gallery.features, name)
        filled, others = (filled_blocks(blocks, side.features.present) for side in (gallery, query))
        mean, count = block_means(gallery.features.features[name], filled, of_gallery, len(codes))
        if not ranking.query_is_gallery:
            own, _ = block_means(query.features.features[name], others, of_query, len(codes))
            unknown = (count == 0).repeat_interleave(mean.shape[1] // count.shape[1], dim=1)  # (C, D)
            mean = torch.where(unknown, own, mean)
        return (
            subtract_means(query.features.features[name], others, mean[of_query]),
            subtract_means(gallery.features.features[name], filled, mean[of_gallery]),
        )

    made = {name: centred(name) for name in gallery.features.features if name != "joint"}
    changed = _with_features(query, {name: pair[0] for name, pair in made.items()})
    if ranking.query_is_gallery:
        return replace(ranking, query=changed, gallery=changed)
    others = _with_features(gallery, {name: pair[1] for name, pair in made.items()})
    return replace(ranking, query=changed, gallery=others)


def _blocks_of(features: FeatureSet, name: str) -> Blocks:
    return features.blocks.get(name, ((MODALITIES.index(name),),) if name in MODALITIES else WHOLE)


def _with_features(side: Side, features: dict[str, Tensor]) -> Side:
    """The side with other features, `joint` made of them."""
    joint = {"joint": torch.cat([features[name] for name in JOINED_FEATURES if name in features], dim=1)}
    return replace(side, features=replace(side.features, features={**features, **joint}))
