"""Slot pooling: how the slots of a slimmed patch set become one feature.

The mean over slots is exactly one weighted pooling of the patches, which undoes the aggregation; the other poolings
keep the slots apart. Shapes: B batch, M modality, S slots, D channels.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models.atmoe import ATMoE
from trireid.models.hdm import HDM
from trireid.models.modality import ModalityLayerNorm, ModalityLinear, mask_absent
from trireid.names import SlotPoolingName
from trireid.types import NUM_MODALITIES, Blocks


class SlotReader(nn.Module):
    """`(B, M, S, D) -> (B, F)`; F is M * D, for `hdm` and `hdm_atmoe` E * D, for `concat` M * S * D.

    Args:
        name: `mean` or `max` over slots, `attention` (one learned query per modality over the normalised slots),
            `concat` (slots side by side), `project` (the same, projected by one linear map per modality), `hdm` (slots
            given to HDM in place of patches) or `hdm_atmoe` (the same, its subset features weighted by ATMoE).
        dim: D.
        num_slots: S.
        num_modalities: M.
    """

    def __init__(
        self, name: SlotPoolingName, *, dim: int, num_slots: int, num_modalities: int = NUM_MODALITIES
    ) -> None:
        super().__init__()
        if name not in get_args(SlotPoolingName):
            raise InputError(f"slot reader is {name!r}; allowed are {', '.join(get_args(SlotPoolingName))}")
        self.name = name
        self.num_slots = num_slots
        self.feature_dim = num_modalities * dim
        self.blocks: Blocks = tuple((modality,) for modality in range(num_modalities))
        if name == "attention":
            self.norm = ModalityLayerNorm(num_modalities, dim)
            self.query = nn.Parameter(torch.randn(num_modalities, dim) * 0.02)
        if name == "concat":
            self.feature_dim = num_modalities * num_slots * dim
        if name in ("hdm", "hdm_atmoe"):
            self.hdm = HDM(dim, num_heads=math.gcd(dim, 8), num_modalities=num_modalities)
            self.feature_dim, self.blocks = self.hdm.feature_dim, self.hdm.subsets
        if name == "hdm_atmoe":
            self.atmoe = ATMoE(dim, num_heads=math.gcd(dim, 4), num_experts=len(self.blocks))
        if name == "project":
            self.projection = ModalityLinear(num_modalities, num_slots * dim, dim)

    def forward(self, slots: Tensor, global_features: Tensor, *, present: Tensor | None = None) -> Tensor:
        """Pool slots `(B, M, S, D)` into `(B, F)`; globals `(B, M, D)` serve HDM; absent modalities give zeros."""
        if self.name in ("hdm", "hdm_atmoe"):
            subsets: Tensor = self.hdm(global_features, slots, present=present)  # (B, E, D)
            if self.name == "hdm":
                return subsets.flatten(1)
            subset_present = None if present is None else self.hdm.subset_present(present)
            mixed: Tensor = self.atmoe(subsets, subset_present=subset_present)  # (B, E * D)
            return mixed
        if self.name == "concat":
            return mask_absent(slots, present).flatten(1)  # (B, M * S * D)
        if self.name == "mean":
            read = slots.mean(dim=2)  # (B, M, D)
        elif self.name == "max":
            read = slots.amax(dim=2)
        elif self.name == "attention":
            keys = self.norm(slots)  # (B, M, S, D)
            logits = (keys * self.query[:, None, :]).sum(-1).float() / math.sqrt(slots.shape[-1])
            weights = logits.softmax(dim=-1).to(slots.dtype)  # (B, M, S)
            read = (weights.unsqueeze(2) @ slots)[:, :, 0]  # (B, M, D)
        else:
            read = self.projection(slots.flatten(2))  # (B, M, D)
        return mask_absent(read, present).flatten(1)  # (B, M * D)
