"""ATMoE: attention-triggered mixture of experts over the 7 subset features of HDM."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models.modality import BatchNorm, QuickGELU


class ATMoE(nn.Module):
    """`(B, E, D) -> (B, E * D)`: every head gates E small experts, expert e working on subset feature e.

    The gate's query comes from all subset features together, its keys are the subset features. The attention scale
    is 1 / sqrt(D / H). Channel order of the result: expert first, then head, then channel within the head.

    Args:
        dim: D.
        num_heads: H, must divide dim.
        num_experts: E.

    Source: DeMo (arXiv 2412.10650), section 3.4 and public code. Deviation: the auxiliary loss of the public code
        is the constant 0 and is left out; experts of subsets without any present modality are gated out.
    """

    def __init__(self, dim: int, *, num_heads: int = 4, num_experts: int = 7) -> None:
        super().__init__()
        if dim % num_heads:
            raise InputError(f"ATMoE has {num_heads} heads; the width {dim} must be a multiple of it")
        self.num_heads, self.num_experts = num_heads, num_experts
        width = dim // num_heads
        self.gate_reduce = nn.Sequential(nn.Linear(num_experts * dim, dim), QuickGELU(), BatchNorm(dim))
        self.gate_query = nn.Linear(dim, dim, bias=False)
        self.gate_key = nn.Linear(dim, dim, bias=False)
        bound = 1.0 / math.sqrt(width)
        self.expert_weight = nn.Parameter(torch.empty(num_experts, num_heads, width, width).uniform_(-bound, bound))
        self.expert_bias = nn.Parameter(torch.empty(num_experts, num_heads, width).uniform_(-bound, bound))
        self.expert_activation = QuickGELU()
        # Batch normalisation treats each channel alone: one over all channels equals one per expert and head.
        self.expert_norm = BatchNorm(num_experts * dim)
        self.feature_dim = num_experts * dim

    def forward(self, subset_features: Tensor, *, subset_present: Tensor | None = None) -> Tensor:
        """Mix `(B, E, D)` into `(B, E * D)`; subset_present `(B, E)` bool or None gates experts out."""
        gates = self.gate(subset_features, subset_present=subset_present)  # (B, E, H)
        chunks = subset_features.unflatten(-1, (self.num_heads, -1))  # (B, E, H, D / H)
        out = torch.einsum("behd,ehod->beho", chunks, self.expert_weight) + self.expert_bias
        out = self.expert_norm(self.expert_activation(out).flatten(1)).view_as(out)  # (B, E, H, D / H)
        mixed: Tensor = (out * gates.unsqueeze(-1)).flatten(1)  # (B, E * D)
        return mixed

    def gate(self, subset_features: Tensor, *, subset_present: Tensor | None = None) -> Tensor:
        """Gates `(B, E, H)`, a softmax over the experts of each head."""
        query = self.gate_query(self.gate_reduce(subset_features.flatten(1)))  # (B, D)
        key = self.gate_key(subset_features)  # (B, E, D)
        query, key = (x.unflatten(-1, (self.num_heads, -1)) for x in (query, key))
        logits = torch.einsum("bhd,behd->beh", query, key).float() / math.sqrt(query.shape[-1])
        if subset_present is not None:
            logits = logits.masked_fill(~subset_present.unsqueeze(-1), float("-inf"))
        return logits.softmax(dim=1).to(subset_features.dtype)  # (B, E, H)
