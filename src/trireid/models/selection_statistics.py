"""Statistics of a selection of patches: agreement between the modalities, and entropy of the scores."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from trireid.types import MODALITIES, Selection


def kept_overlap(mask: Tensor, present: Tensor) -> dict[tuple[str, str], Tensor]:
    """Share of the places that two modalities keep both, of those that either keeps (Jaccard index).

    Args:
        mask: `(B, M, N)` bool, true where kept.
        present: `(B, M)` bool.

    Returns:
        By pair of modality names, `(B,)` float32 in [0, 1]; NaN where one of the two is absent.
    """
    overlap = {}
    for first, second in combinations(range(len(MODALITIES)), 2):
        both = (mask[:, first] & mask[:, second]).sum(dim=-1)  # (B,)
        either = (mask[:, first] | mask[:, second]).sum(dim=-1)
        there = present[:, first] & present[:, second]
        overlap[MODALITIES[first], MODALITIES[second]] = (both / either).masked_fill(~there, torch.nan)
    return overlap


def score_entropy(scores: Tensor, present: Tensor) -> Tensor:
    """How evenly the scores of an image are spread: 1 if all score alike, 0 if a single patch has all.

    The scores above their minimum are taken as shares of their sum; the entropy of these is divided by that of equal
    shares. Neither the unit nor the zero of the scores matters, so that stages of different guidance compare.

    Args:
        scores: `(B, M, N)`, -inf for patches that were dropped before.
        present: `(B, M)` bool.

    Returns:
        `(B, M)` float32 in [0, 1]; NaN where a modality is absent.
    """
    there = scores.isfinite()
    height = (scores - scores.masked_fill(~there, torch.inf).amin(dim=-1, keepdim=True)).masked_fill(~there, 0.0)
    total = height.sum(dim=-1, keepdim=True)
    count = there.sum(dim=-1, keepdim=True)
    share = torch.where(total > 0, height / total, there / count)  # equal scores: equal shares
    entropy = -torch.special.xlogy(share, share).sum(dim=-1)
    most = count[..., 0].clamp_min(2).float().log()
    relative: Tensor = (entropy / most).clamp(0.0, 1.0).masked_fill(~present, torch.nan)
    return relative


def selection_statistics(selection: Selection, present: Tensor) -> dict[str, float]:
    """Means over a batch by name: `kept`, `overlap/rgb-nir`, ..., `entropy/rgb`, ...; NaN where nothing is there.

    Args:
        selection: one stage.
        present: `(B, M)` bool, `ReIDOutput.present`.

    Returns:
        Plain numbers in [0, 1], `kept` being the share of the patches of present modalities that was kept.
    """
    kept = selection.mask.float().mean(dim=-1)[present].mean()
    overlap = kept_overlap(selection.mask, present)
    entropy = score_entropy(selection.scores, present)  # (B, M)
    return (
        {"kept": float(kept)}
        | {f"overlap/{first}-{second}": float(value.nanmean()) for (first, second), value in overlap.items()}
        | {f"entropy/{name}": float(entropy[:, index].nanmean()) for index, name in enumerate(MODALITIES)}
    )
