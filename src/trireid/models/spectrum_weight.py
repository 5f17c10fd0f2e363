"""A weight for each whole modality of an item, from what the selection measures: a blinded spectrum counts less.

Smoke, night or a covered lens leave an image that is there and shows nothing. The cosines that choose patches tell: the
patches of such an image are all alike, or do not look like what the other spectra show. Each statistic is compared
with its usual value for that spectrum, which batch normalisation keeps. Shapes: B batch, M modality, G guide (same
axis as M), N patches, S statistics.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from trireid.errors import InputError
from trireid.models.modality import BatchNorm, mask_absent
from trireid.names import SpectrumWeightName
from trireid.types import Blocks

STATISTICS = ("spread", "own mean", "own deviation", "agreement", "other deviation")
"""Of a modality: how unlike its patches are; mean and deviation over the patches of their cosine with its own guide;
the mean cosine with the guide of the other modality that they agree with most; the deviation of that with the others.
"""


class SpectrumWeight(nn.Module):
    """Weights `(B, M)` of the modalities, a softmax over those present times their number: 1 is the usual weight.

    Args:
        name: `spread` and `agreement` are the softmax of that one statistic, `learned` that of a linear map of all
            five, which starts at 0 (all weights 1).
        num_modalities: M.

    Source: ours.
    """

    def __init__(self, name: SpectrumWeightName, *, num_modalities: int) -> None:
        super().__init__()
        if name not in get_args(SpectrumWeightName) or name == "none":
            raise InputError(f"spectrum weight is {name!r}; allowed are spread, agreement, learned")
        self.name = name
        self.norm = BatchNorm(num_modalities * len(STATISTICS), affine=False)
        self.score = nn.Linear(len(STATISTICS), 1, bias=False) if name == "learned" else None
        if self.score is not None:
            nn.init.zeros_(self.score.weight)

    def forward(self, patches: Tensor, cosines: Tensor, *, present: Tensor | None = None) -> Tensor:
        """Weights `(B, M)` float32, 0 where absent.

        Args:
            patches: `(B, M, N, D)`.
            cosines: `(B, M, G, N)` of patches with guides, not normalised.
            present: `(B, M)` bool; None: all present.
        """
        if present is None:
            present = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        with torch.autocast(patches.device.type, enabled=False):
            found = spectrum_statistics(patches.detach(), cosines.detach(), present)
            found = usual_where_absent(found, self.norm, present)
            usual = self.norm(found.flatten(1)).view_as(found)  # (B, M, S), in standard deviations
            logits = self._logits(usual)  # (B, M)
            # Three standard deviations say all there is to say.
            logits = logits.clamp(-3.0, 3.0).masked_fill(~present, float("-inf"))
            weights: Tensor = logits.softmax(dim=-1) * present.sum(dim=-1, keepdim=True)
        return weights

    def _logits(self, usual: Tensor) -> Tensor:
        if self.score is None:
            return usual[..., STATISTICS.index(self.name)]
        learned: Tensor = self.score(usual)
        return learned[..., 0]


def make_weight(name: SpectrumWeightName, *, num_modalities: int) -> SpectrumWeight | None:
    """The module of a name, None for `none`."""
    return None if name == "none" else SpectrumWeight(name, num_modalities=num_modalities)


def spectrum_statistics(patches: Tensor, cosines: Tensor, present: Tensor) -> Tensor:
    """The statistics of `STATISTICS`, `(B, M, S)` float32; arguments as in `SpectrumWeight.forward`.

    An item with one modality only has no others: what is measured with their guides is 0.
    """
    unit = functional.normalize(patches.float(), dim=-1)
    spread = 1.0 - unit.mean(dim=2).square().sum(dim=-1)  # (B, M), 1 - the mean cosine of two patches
    own = cosines.diagonal(dim1=1, dim2=2).transpose(1, 2)  # (B, M, N)
    apart = ~torch.eye(present.shape[1], dtype=torch.bool, device=present.device)  # (M, G)
    used = (apart & present[:, None, :]).unsqueeze(-1)  # (B, M, G, 1)
    level = cosines.mean(dim=-1).masked_fill(~used[..., 0], -1.0).amax(dim=-1)  # (B, M)
    level = level.masked_fill(~used.any(dim=2)[..., 0], 0.0)
    others = torch.where(used, cosines, 0.0).sum(dim=2) / used.sum(dim=2).clamp_min(1)  # (B, M, N)
    deviations = [values.std(dim=-1, correction=0) for values in (own, others)]
    return torch.stack([spread, own.mean(dim=-1), deviations[0], level, deviations[1]], dim=-1)


def usual_where_absent(found: Tensor, norm: nn.BatchNorm1d, present: Tensor) -> Tensor:
    """Statistics `(B, M, S)` with the usual values in place of those of absent modalities `(B, M)`."""
    assert norm.running_mean is not None
    usual = norm.running_mean.view(found.shape[1:]).expand(found.shape)
    return mask_absent(found, present) + mask_absent(usual, ~present)


def weigh_blocks(feature: Tensor, weights: Tensor, blocks: Blocks, present: Tensor | None) -> Tensor:
    """Scale every block of a feature by the mean weight of the present modalities that it is made of.

    Args:
        feature: `(B, F)`, K blocks of equal width; weights: `(B, M)`, 0 where absent.
        blocks: the modalities of each block; present: `(B, M)` bool, None: all.

    Returns:
        `(B, F)`.
    """
    there = torch.ones_like(weights) if present is None else present.to(weights.dtype)
    scale = []
    for block in blocks:
        total = torch.stack([weights[:, modality] for modality in block]).sum(dim=0)
        count = torch.stack([there[:, modality] for modality in block]).sum(dim=0)
        scale.append(total / count.clamp_min(1.0))
    scaled: Tensor = feature.unflatten(1, (len(blocks), -1)) * torch.stack(scale, dim=1).unsqueeze(-1).to(feature.dtype)
    return scaled.flatten(1)
