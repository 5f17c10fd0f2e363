"""ToMe: patches are merged in pairs that are alike, by bipartite soft matching; the control for cuts that choose.

The patches alternate between two halves. Each of the first half points to the patch of the second whose key is most
like its own; the r pairs that are most alike are merged, to the mean of what both stand for. Nothing is chosen by what
a patch is good for, and nothing is thrown away. Shapes: R rows, N patches, K kept, d channels of a head, D channels.

Source: Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023, sections 3 and 4.
Deviation: merged after a block, not between its attention and its MLP, and once where the cut stands.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trireid.models import selection as select

STAYS = 2.0
"""Score of a patch of the second half, above the negative of every cosine."""


def matching_scores(keys: Tensor) -> Tensor:
    """Scores `(R, N)` float32 whose K highest are what is left after N - K merges, for K >= N / 2.

    A patch of the first half (even places) has minus the largest cosine of its key with one of the second half.

    Args:
        keys: `(R, N, d)`, the mean over the heads of the keys of the patches.
    """
    unit = functional.normalize(keys.detach().float(), dim=-1)
    alike = unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)  # (R, ceil(N / 2), floor(N / 2))
    scores = unit.new_full(unit.shape[:2], STAYS)
    scores[:, 0::2] = -alike.amax(dim=-1)
    return scores


def merge_matched(patches: Tensor, mass: Tensor, keys: Tensor, indices: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Merge every dropped patch into the patch of the second half whose key is most like its own.

    Args:
        patches: `(R, N, D)`; mass: `(R, N)`, how many patches each stands for.
        keys: `(R, N, d)` as for `matching_scores`.
        indices: `(R, K)` kept; mask: `(R, N)` bool, true where kept; all of the second half are.

    Returns:
        patches `(R, K, D)`, means weighted by mass, and their mass `(R, K)`.
    """
    gone = select.true_places(~mask, mask.shape[1] - indices.shape[1])  # (R, r)
    with torch.no_grad():
        unit = functional.normalize(keys.float(), dim=-1)
        alike = select.gather_patches(unit, gone) @ select.gather_patches(unit, indices).transpose(1, 2)  # (R, r, K)
        nearest = alike.masked_fill((indices % 2 == 0).unsqueeze(1), float("-inf")).argmax(dim=-1)  # (R, r)
        belongs = mass.new_zeros(alike.shape).scatter_(2, nearest.unsqueeze(-1), 1.0)
        share = belongs.transpose(1, 2) * mass.gather(1, gone).unsqueeze(1)  # (R, K, r)
        own = mass.gather(1, indices)  # (R, K)
        total = own + share.sum(dim=-1)
    kept, dropped = select.gather_patches(patches, indices), select.gather_patches(patches, gone)
    merged = kept * (own / total).unsqueeze(-1).to(kept.dtype)
    return merged + (share / total.unsqueeze(-1)).to(kept.dtype) @ dropped, total


def mass_bias(mass: Tensor, *, num_prefix: int, dtype: torch.dtype) -> Tensor:
    """What is added to the attention logits, so that a token counts as the patches that it stands for.

    Proportional attention: `softmax(q k / sqrt(d) + log s)`. Source: ToMe, equation 1.

    Args:
        mass: `(R, N)`; num_prefix: tokens before the patches, each of which stands for itself.

    Returns:
        `(R, 1, 1, num_prefix + N)` in the given type.
    """
    return functional.pad(mass.log(), (num_prefix, 0)).to(dtype)[:, None, None, :]
