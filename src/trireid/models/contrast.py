"""What a patch shows beyond the rest of its image, and how much it stands out: a choice of patches on one scale.

A cosine that is stretched to [0, 1] in each image keeps the same number of patches of an image that shows nothing as of
one that shows everything. What is measured here has the same scale in all images: in smoke or fog the patches of an
image are alike, so that all of them count little beside those of the other modalities. Shapes: B batch, M modality,
N patches, D channels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from trireid.names import ContrastName


def slot_values(patches: Tensor, contrast: ContrastName) -> Tensor:
    """What the slots are weighted sums of, `(B, M, N, D)`.

    Args:
        patches: `(B, M, N, D)`.
        contrast: `none` gives the patches as they are, `centred` less the mean of the patches of their image,
            `weighted` the same times `1 - cos(patch, that mean)`, in [0, 2].

    Source: ours.

    Example:
        >>> import torch
        >>> patches = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 6.0]])[None, None]
        >>> slot_values(patches, "centred")[0, 0].tolist()
        [[0.0, -2.0], [0.0, -2.0], [0.0, 4.0]]
        >>> flat = torch.ones(1, 1, 3, 2)  # an image that shows nothing
        >>> bool(slot_values(flat, "weighted").any())
        False
    """
    if contrast == "none":
        return patches
    mean = patches.mean(dim=2, keepdim=True)  # (B, M, 1, D)
    centred = patches - mean
    if contrast == "centred":
        return centred
    apart = 1.0 - functional.cosine_similarity(patches.float(), mean.float(), dim=-1)  # (B, M, N)
    return centred * apart.unsqueeze(-1).to(patches.dtype)
