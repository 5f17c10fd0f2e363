"""Adaptive fusion: each query weighs its spectra by how far the best match in each of them stands out.

A cosine of whole features weighs each spectrum by the length of its part alone, also one that smoke or night has
blinded: there all items resemble each other, and no match stands out. As in query-adaptive late fusion (Zheng et al.,
Query-Adaptive Late Fusion for Image Search and Person Re-identification, CVPR 2015), the scores of one query against
the gallery tell which of its spectra to trust. The weight here is the z-score of the best match, to a power. No labels
of identity are used; a distance depends on the gallery as a whole.

Shapes: Q queries, G gallery items, S spectra, K blocks, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trireid.evaluation.distance import check_features, check_widths, unit
from trireid.evaluation.nearest import row_slices
from trireid.types import UNKNOWN, Blocks, Labels

ROWS = 256
"""Queries that are compared at a time."""


def spectra_of(blocks: Blocks, present: Tensor) -> dict[int, list[int]]:
    """The numbers of the blocks of each spectrum that is present, by its modality; empty where a block mixes spectra.

    Args:
        blocks: the modalities of each of K blocks.
        present: `(M,)` bool, the modalities of all items.

    Example:
        >>> spectra_of(((0,), (1,), (0,), (1,)), torch.tensor([True, True, False]))
        {0: [0, 2], 1: [1, 3]}
        >>> spectra_of(((0,), (0, 1)), torch.tensor([True, True, False]))
        {}
    """
    if any(len(block) != 1 for block in blocks):
        return {}
    modalities = [modality for modality in dict.fromkeys(block[0] for block in blocks) if bool(present[modality])]
    return {modality: [k for k, block in enumerate(blocks) if block == (modality,)] for modality in modalities}


def counted_pairs(query: Labels, gallery: Labels, *, scenes: bool = False) -> Tensor:
    """The pairs `(Q, G)` bool whose scores tell how far a match stands out: those of different or unknown cameras.

    Images of one camera resemble each other in what its light and weather do to every item. A query whose whole gallery
    is of its own camera counts all items but itself.

    Args:
        query, gallery: `(Q,)` and `(G,)`.
        scenes: pairs of one scene do not count either. For a protocol that hides them among the same identity: such a
            match would stand out in each spectrum, and no query may see it.
    """
    itself = query.item[:, None] == gallery.item
    counted = ~itself
    for own, other in [(query.camera, gallery.camera)] + [(query.scene, gallery.scene)] * scenes:
        counted &= (own[:, None] != other) | (own[:, None] == UNKNOWN)
    return torch.where(counted.any(dim=1, keepdim=True), counted, ~itself)


def standing_out(cosine: Tensor, counted: Tensor) -> Tensor:
    """The z-score of the best match of each query in each spectrum, at least 0.

    Args:
        cosine: `(S, Q, G)`.
        counted: `(Q, G)` bool, the pairs that count.

    Returns:
        `(S, Q)`: (largest - mean) / standard deviation of the counted cosines; 0 where these are equal or fewer than 2.

    Example:
        >>> cosine = torch.tensor([[[0.0, 0.0, 0.0, 1.0]], [[0.5, 0.5, 0.5, 0.5]]])
        >>> standing_out(cosine, torch.ones(1, 4, dtype=torch.bool)).round(decimals=2).tolist()
        [[1.73], [0.0]]
    """
    number = counted.sum(dim=1).clamp(min=1)  # (Q,)
    value = cosine.double()
    mean = (value * counted).sum(dim=2) / number
    variance = ((value - mean[..., None]).square() * counted).sum(dim=2) / number
    best = value.masked_fill(~counted, -torch.inf).amax(dim=2)
    spread = variance.sqrt()
    return torch.where(spread > 1e-6, (best - mean) / spread.clamp(min=1e-6), torch.zeros_like(spread))


def fusion_weights(cosine: Tensor, counted: Tensor, power: float) -> Tensor:
    """The weight of each spectrum for each query, `(S, Q)`; they add up to 1 and are equal where nothing stands out.

    Args:
        cosine, counted: as in `standing_out`.
        power: of the z-scores; the larger, the more the best spectrum decides alone.
    """
    score = standing_out(cosine, counted).pow(power)
    total = score.sum(dim=0, keepdim=True)
    return torch.where(total > 0.0, score / total.clamp(min=1e-300), torch.full_like(score, 1.0 / len(score)))


def fused_distance(
    query: Tensor, gallery: Tensor, spectra: dict[int, list[int]], counted: Tensor, *, num_blocks: int, power: float
) -> Tensor:
    """Distances `sqrt(2 - 2 sum_s w_qs cos_s(q, g))` with the weights of each query.

    `cos_s` compares the parts of spectrum `s`, each normalised by itself: their lengths have no influence. A power
    near 0 is therefore not the same as whole features.

    Args:
        query, gallery: `(Q, D)` and `(G, D)` features of K blocks.
        spectra: from `spectra_of`, not empty.
        counted: `(Q, G)` bool, see `counted_pairs`.
        num_blocks: K.
        power: see `fusion_weights`.

    Returns:
        `(Q, G)` float32 in [0, 2].

    Raises:
        InputError: query and gallery have different widths, or a feature is not finite.
    """
    check_widths(query, gallery, name="adaptive fusion")
    check_features(query, "query")
    check_features(gallery, "gallery")

    def parts(features: Tensor) -> list[Tensor]:
        blocks = features.unflatten(1, (num_blocks, -1))
        return [unit(blocks[:, own].flatten(1)).double() for own in spectra.values()]  # S times (n, D / S)

    first, second = parts(query), parts(gallery)
    result = torch.empty(len(query), len(gallery), dtype=torch.float32, device=query.device)
    for rows in row_slices(len(query), ROWS):
        cosine = torch.stack([one[rows] @ other.T for one, other in zip(first, second, strict=True)])
        weight = fusion_weights(cosine, counted[rows], power)
        fused = (weight[..., None] * cosine).sum(dim=0)
        result[rows] = (2.0 - 2.0 * fused).clamp(min=0.0).sqrt().float()
    return result
