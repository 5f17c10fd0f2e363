"""Guidance: the score of a patch at the depth of a cut inside the ViT.

The score uses what is there at that depth: the CLS tokens of the three modalities, which run as one batch of 3B
through the shared ViT. Everything works on rows: R of the B * M images, those whose modality is present.
Shapes: R rows, G guides (modalities), N patches still there, K patches that reached the end, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models import selection as select
from trireid.models.attention import attention_keys, attention_scores
from trireid.models.matching import matching_scores
from trireid.models.slimming import RowTokens, SlimmingStage
from trireid.types import MODALITIES

_GUIDE_SHARE: dict[str, tuple[float, float]] = {"self": (1.0, 0.0), "cross": (0.0, 1.0), "both": (2.0, 1.0)}
"""Weight of the own CLS token and of each other modality's, for the three cosine guidances."""


def guide_shares(guidance: str, present: Tensor, *, beta: float = 0.25) -> dict[str, float]:
    """Share that the predictor and the guide of each modality have in a score, all terms normalised to [0, 1].

    These are the weights by which the terms are summed, divided by their sum; how much a term differs between the
    patches is not in them. The mean is taken over the images that are present.

    Args:
        guidance: `self`, `cross` or `both` of a cut, or `sdtps`, with `(1 - 2 beta)` for the predictor beside them.
        present: `(B, M)` bool.
        beta: of SDTPS.

    Returns:
        `guide/rgb`, ... (of all images), `guide/own` (the part of these that looks at its own image) and, for `sdtps`,
        `guide/predictor`; the modalities and the predictor sum to 1. Empty for a guidance without guides.
    """
    if guidance != "sdtps" and guidance not in _GUIDE_SHARE:
        return {}
    own, other = (2.0, 1.0) if guidance == "sdtps" else _GUIDE_SHARE[guidance]
    predictor, factor = (1.0 - 2.0 * beta, beta) if guidance == "sdtps" else (0.0, 1.0)
    weights = factor * select.guide_weights(present, own=own, other=other)  # (B, M, G)
    shares = weights / (predictor + weights.sum(dim=-1, keepdim=True)).clamp_min(1e-12)
    mean = shares[present].mean(dim=0)  # (G,)
    found = {f"guide/{name}": float(value) for name, value in zip(MODALITIES, mean, strict=True)}
    found["guide/own"] = float(shares.diagonal(dim1=1, dim2=2)[present].mean())
    return found if guidance != "sdtps" else found | {"guide/predictor": 1.0 - float(mean.sum())}


def stage_scores(
    stage: SlimmingStage,
    tokens: RowTokens,
    *,
    block: nn.Module,
    before: Tensor,
    present: Tensor,
    rows: Tensor | None,
    num_places: int = 0,
    num_modalities: int | None = None,
    rope: Tensor | None = None,
) -> Tensor:
    """Scores `(R, N)` float32 of the patches still there, by a guidance without weights of its own; no gradient passes.

    Args:
        stage: its guidance is none of `learned`, `consensus` (see `learned_scores`) and `none`.
        tokens: rows after the block.
        block: the block that was just run; before: its input `(R, T, D)`.
        present: `(B, M)` bool; rows: `(R,)` places of the rows in its flat form, None: a row for each of them, of which
            the absent ones do not count.
        num_places: patches of the original grid.
        num_modalities: see `guide_weights`.
        rope: the rotary positions that the block was run with.

    Raises:
        InputError: `cross` guidance for an item with a single modality: nothing is there to guide.
    """
    alone = rows is not None and stage.guidance == "cross" and bool((present.sum(dim=1) < 2).any())
    if alone:
        raise InputError(
            "model.slimming guidance is cross, and an item has one modality only, which leaves no other to "
            "guide it: use guidance both or self"
        )
    if stage.guidance == "random":
        return select.random_scores(tokens.patches[..., 0], training=block.training)
    with torch.no_grad():
        if stage.guidance == "distinct":
            apart = select.min_max_normalise(-cosine_with_mean(tokens.patches))
            return apart + mean_by_place(apart, tokens.positions, present, rows, num_places)
        if stage.guidance == "cls_attention":
            return attention_of(tokens, block=block, before=before, rope=rope)
        if stage.guidance == "matching":
            return matching_scores(keys_of(tokens, block=block, before=before))
        own, other = _GUIDE_SHARE[stage.guidance]
        guides, weights = row_guides(tokens.cls, present, rows, own=own, other=other, num_modalities=num_modalities)
        return guided_scores(tokens.patches, guides, weights)


def learned_scores(
    predictor: nn.Module, tokens: RowTokens, *, present: Tensor, rows: Tensor | None, consensus_places: int = 0
) -> Tensor:
    """Scores `(R, N)` float32 of the patches still there by a predictor, which alone gets a gradient.

    Args:
        predictor: a `PatchPredictor`.
        tokens: rows after the block.
        present: `(B, M)` bool; rows: as in `stage_scores`.
        consensus_places: patches of the original grid for the guidance `consensus`; 0 for `learned`.
    """
    guides, weights = row_guides(tokens.cls, present, rows, own=0.0, other=1.0)
    others = (weights.unsqueeze(1) @ guides.float())[:, 0] / max(1, present.shape[1] - 1)  # (R, D), their mean
    scores: Tensor = predictor(tokens.patches, tokens.cls[:, 0], others)
    if consensus_places:
        scores = scores + mean_by_place(scores, tokens.positions, present, rows, consensus_places)
    return scores


def cosine_with_mean(patches: Tensor) -> Tensor:
    """Cosine of every patch with the mean of the unit patches of its image: `(R, N, D)` -> `(R, N)` float32.

    That is the mean cosine with all patches, up to a factor: what is like many others can be spared.
    """
    unit = nn.functional.normalize(patches.float(), dim=-1)
    mean = nn.functional.normalize(unit.mean(dim=1, keepdim=True), dim=-1)
    return (unit * mean).sum(dim=-1)


def mean_by_place(scores: Tensor, positions: Tensor, present: Tensor, rows: Tensor | None, num_places: int) -> Tensor:
    """Mean of the scores of all modalities of an item that still have a patch at the same place of the grid.

    Args:
        scores: `(R, N)`; positions: `(R, N)` int64 places, below num_places.
        present: `(B, M)` bool; rows: as in `stage_scores`.
        num_places: patches of the original grid.

    Returns:
        `(R, N)`.
    """
    batch, modalities = present.shape
    table = torch.stack([scores, torch.ones_like(scores)])  # (2, R, N): sums and counts
    if rows is None:
        table = table * present.flatten().unsqueeze(1)
    spread = table.new_zeros(2, scores.shape[0], num_places).scatter(2, positions.expand_as(table), table)
    if rows is None:
        total = spread.view(2, batch, modalities, num_places).sum(dim=2)  # (2, B, places)
    else:
        total = spread.new_zeros(2, batch, num_places).index_add(1, rows // modalities, spread)
    mean = total[0] / total[1].clamp(min=1)  # (B, places)
    owned = mean.repeat_interleave(modalities, dim=0) if rows is None else mean[rows // modalities]
    return owned.gather(1, positions)


def foresight_loss(scores: Tensor, positions: Tensor, attention: Tensor, reached: Tensor) -> Tensor:
    """How far the scores of a cut are from the attention of the CLS token in the late blocks.

    Divergence between that attention and the softmax of the scores, both over the patches that got there.

    Args:
        scores: `(R, N)` with a gradient; positions: `(R, N)` int64, their places in the original grid.
        attention: `(R, K)` without a gradient; reached: `(R, K)` int64, its places.

    Returns:
        Scalar, the mean over the rows of the Kullback-Leibler divergence: 0 is perfect.

    Source: ours. Attention at the depth of an early cut says little; that of the late blocks, which a cut cannot see,
        says what the features are made of. Training knows it at the end of the same forward pass.
    """
    # Both lists of places ascend, and the second is a part of the first.
    place = torch.searchsorted(positions.contiguous(), reached.contiguous())  # (R, K)
    foreseen = scores.gather(1, place).log_softmax(dim=-1)
    wanted = attention.float() / attention.float().sum(dim=-1, keepdim=True)
    return nn.functional.kl_div(foreseen, wanted, reduction="batchmean")


def attention_of(tokens: RowTokens, *, block: nn.Module, before: Tensor, rope: Tensor | None) -> Tensor:
    """`attention_scores` `(R, N)` of the patches still there, in a block that was run on them."""
    return attention_scores(
        block,
        before,
        num_patches=tokens.positions.shape[1],
        num_prefix=tokens.num_prefix,
        has_cls=tokens.has_cls,
        rope=rope,
    )


def keys_of(tokens: RowTokens, *, block: nn.Module, before: Tensor) -> Tensor:
    """`attention_keys` `(R, N, d)` of the patches still there, in a block that was run on them."""
    return attention_keys(block, before, num_patches=tokens.positions.shape[1], num_prefix=tokens.num_prefix)


def guided_scores(patches: Tensor, guides: Tensor, weights: Tensor) -> Tensor:
    """Cosines with the guides, each min-max normalised over the patches, weighted and summed: `(R, N)` float32.

    Args:
        patches: `(R, N, D)`.
        guides: `(R, G, D)`, the CLS tokens of all modalities of the row's item.
        weights: `(R, G)`, 0 for guides that do not count.
    """
    unit_patches = nn.functional.normalize(patches.float(), dim=-1)
    unit_guides = nn.functional.normalize(guides.float(), dim=-1)
    with torch.autocast(patches.device.type, enabled=False):
        cosines = unit_guides @ unit_patches.transpose(1, 2)  # (R, G, N)
    return (select.min_max_normalise(cosines) * weights.unsqueeze(-1)).sum(dim=1)


def row_guides(
    cls: Tensor, present: Tensor, rows: Tensor | None, *, own: float, other: float, num_modalities: int | None = None
) -> tuple[Tensor, Tensor]:
    """Guides and their weights for every row.

    Args:
        cls: `(R, 1, D)`, rows in the order of `present.flatten()`.
        present: `(B, M)` bool.
        rows: `(R,)` as in `stage_scores`.
        own, other, num_modalities: see `guide_weights`.

    Returns:
        guides `(R, G, D)` and weights `(R, G)`.
    """
    batch, modalities = present.shape
    weights = select.guide_weights(present, own=own, other=other, num_modalities=num_modalities)
    weights = weights.flatten(0, 1)  # (B * M, G)
    if rows is None:
        return cls.view(batch, modalities, -1).repeat_interleave(modalities, dim=0), weights
    spread = cls.new_zeros(batch * modalities, cls.shape[-1]).index_copy(0, rows, cls[:, 0])
    return spread.view(batch, modalities, -1)[rows // modalities], weights[rows]
