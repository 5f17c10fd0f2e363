"""PIFE: patch-integrated features. Each modality's CLS token takes in the mean of its patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trireid.models.modality import ModalityLayerNorm, ModalityLinear, QuickGELU, mask_absent
from trireid.types import NUM_MODALITIES


class PIFE(nn.Module):
    """`g <- QuickGELU(Linear(LayerNorm([CLS ; mean of patches])))`, 2D -> D, own weights per modality.

    Source: DeMo (arXiv 2412.10650), section 3.2 and public code.
    """

    def __init__(self, dim: int, *, num_modalities: int = NUM_MODALITIES) -> None:
        super().__init__()
        self.norm = ModalityLayerNorm(num_modalities, 2 * dim)
        self.reduce = ModalityLinear(num_modalities, 2 * dim, dim)
        self.activation = QuickGELU()

    def forward(self, cls: Tensor, patches: Tensor, *, present: Tensor | None = None) -> Tensor:
        """Global features `(B, M, D)` from CLS tokens `(B, M, D)` and patches `(B, M, N, D)`."""
        joined = torch.cat([cls, patches.mean(dim=2)], dim=-1)  # (B, M, 2D)
        return mask_absent(self.activation(self.reduce(self.norm(joined))), present)  # (B, M, D)
