"""What a patch shows beyond the rest of its image, and how much it stands out: a choice of patches on one scale.

A cosine that is stretched to [0, 1] in each image keeps the same number of patches of an image that shows nothing as of
one that shows everything. What is measured here has the same scale in all images: in smoke or fog the patches of an
image are alike, so that all of them count little beside those of the other modalities. Shapes: B batch, M modality,
N patches, D channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from trireid.names import ContrastName

SMALLEST_MEAN = 0.01
"""Length of the mean patch, in root mean square lengths of the patches, below which its direction counts less."""


def slot_values(patches: Tensor, contrast: ContrastName) -> Tensor:
    """What the slots are weighted sums of, before `finish_slots`: `(B, M, N, D)`, for `weighted` `(B, M, N, D + 1)`.

    Args:
        patches: `(B, M, N, D)`.
        contrast: `none` gives the patches as they are, `centred` less the mean of the patches of their image,
            `weighted` the same times `1 - cos(patch, that mean)`, with this weight as last channel.

    Source: ours.

    Example:
        >>> import torch
        >>> patches = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 6.0]])[None, None]
        >>> slot_values(patches, "centred")[0, 0].tolist()
        [[0.0, -2.0], [0.0, -2.0], [0.0, 4.0]]
    """
    if contrast == "none":
        return patches
    mean = patches.mean(dim=2, keepdim=True)  # (B, M, 1, D)
    centred = patches - mean
    if contrast == "centred":
        return centred
    apart = apart_from_mean(patches.float(), mean.float()).unsqueeze(-1).to(patches.dtype)  # (B, M, N, 1)
    return torch.cat([centred * apart, apart], dim=-1)


def apart_from_mean(patches: Tensor, mean: Tensor) -> Tensor:
    """`1 - cos(patch, mean)`, `(..., N)`; beside patches `(..., N, D)` that cancel, the mean `(..., 1, D)` counts less.

    It is half the squared distance of the directions: where all patches are nearly alike, as in smoke, a cosine near 1
    has lost in float32 what it differs by.

    The direction of a mean near 0 is chance, and its gradient without bound: below `SMALLEST_MEAN` of the root mean
    square length of the patches, the result goes to 1 with the mean. Images are far above: 0.5 to 0.9 on TNO's scenes.
    """
    apart = (functional.normalize(patches, dim=-1) - functional.normalize(mean, dim=-1)).square().sum(dim=-1) / 2
    length = torch.linalg.vector_norm(patches, dim=(-2, -1)).unsqueeze(-1) / math.sqrt(patches.shape[-2])  # (..., 1)
    share: Tensor = torch.linalg.vector_norm(mean, dim=-1) / (SMALLEST_MEAN * length).clamp_min(1e-12)  # (..., 1)
    share = share.clamp_max(1.0)
    return share * apart + (1.0 - share)


def finish_slots(sums: Tensor, contrast: ContrastName) -> Tensor:
    """Slots `(..., D)` of sums over `slot_values`; `weighted` ones have the length `sqrt(D)` times their mean weight.

    Example:
        >>> import torch
        >>> finish_slots(torch.tensor([3.0, 4.0, 0.5]), "weighted") / 2**0.5
        tensor([0.3000, 0.4000])
    """
    if contrast != "weighted":
        return sums
    value, weight = sums[..., :-1], sums[..., -1:]
    smallest = max(1e-12, torch.finfo(value.dtype).tiny)  # 1e-12 is 0 in fp16, and a flat image would be 0 / 0
    return functional.normalize(value, dim=-1, eps=smallest) * weight * math.sqrt(value.shape[-1])
