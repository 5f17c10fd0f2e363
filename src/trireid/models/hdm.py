"""HDM: hierarchical decoupling. One learned query for each of the 7 subsets of modalities attends to their tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trireid.errors import InputError
from trireid.types import NUM_MODALITIES, modality_subsets


class HDM(nn.Module):
    """Subset features `(B, E, D)`, E = 7 for three modalities, in the order r, n, t, rn, rt, nt, rnt.

    Each subset has its own learned query and its own multi-head attention over the [global ; patches] tokens of its
    modalities; no residual and no normalisation. The attention is written with torch's fused product, so that
    FLOPs are counted and no step is hidden in a fast path.

    Args:
        dim: D.
        num_heads: heads of each attention, must divide dim.
        dropout: on the attention weights, in training.
        query_std: of the normal draws that the queries start from; upstream's is 1 / sqrt(dim).
        num_modalities: M.

    Source: DeMo (arXiv 2412.10650), section 3.3 and public code.
    Deviation: by default the queries start from standard normal draws.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        dropout: float = 0.1,
        query_std: float = 1.0,
        num_modalities: int = NUM_MODALITIES,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise InputError(f"HDM has {num_heads} heads; the width {dim} must be a multiple of it")
        self.subsets = modality_subsets(num_modalities)
        self.num_heads, self.dropout = num_heads, dropout
        count = len(self.subsets)
        self.query = nn.Parameter(query_std * torch.randn(count, dim))
        self.in_weight = nn.Parameter(torch.empty(count, 3, dim, dim))  # query, key, value maps
        self.in_bias = nn.Parameter(torch.zeros(count, 3, dim))
        self.out_weight = nn.Parameter(torch.empty(count, dim, dim))
        self.out_bias = nn.Parameter(torch.zeros(count, dim))
        for index in range(count):
            nn.init.xavier_uniform_(self.in_weight[index].view(3 * dim, dim))
            nn.init.kaiming_uniform_(self.out_weight[index], a=5**0.5)
        self.feature_dim = count * dim

    def forward(self, global_features: Tensor, patches: Tensor, *, present: Tensor | None = None) -> Tensor:
        """Decouple.

        Args:
            global_features: `(B, M, D)`.
            patches: `(B, M, N, D)`.
            present: `(B, M)` bool; tokens of absent modalities are not seen, a subset with none present gives zeros.

        Returns:
            `(B, E, D)`.
        """
        tokens = torch.cat([global_features.unsqueeze(2), patches], dim=2)  # (B, M, 1 + N, D)
        features = [self._attend(index, tokens, present) for index in range(len(self.subsets))]
        return torch.stack(features, dim=1)  # (B, E, D)

    def subset_present(self, present: Tensor) -> Tensor:
        """Which subsets have at least one modality present: `(B, M)` bool -> `(B, E)` bool."""
        return torch.stack([_of(present, subset).any(dim=1) for subset in self.subsets], dim=1)

    def _attend(self, index: int, tokens: Tensor, present: Tensor | None) -> Tensor:
        subset = self.subsets[index]
        batch, _, length, dim = tokens.shape
        seen = _of(tokens, subset).flatten(1, 2)  # (B, S * (1 + N), D)
        weight, bias = self.in_weight[index], self.in_bias[index]
        query = functional.linear(self.query[index].to(seen.dtype), weight[0], bias[0]).expand(batch, 1, dim)
        key, value = functional.linear(seen, weight[1:].flatten(0, 1), bias[1:].flatten()).chunk(2, dim=-1)
        mask = None
        if present is not None:
            visible = _of(present, subset)  # (B, S)
            # A row without any key would give NaN: let it attend to everything, and replace its result by zeros below.
            visible = visible | ~visible.any(dim=1, keepdim=True)
            mask = visible.repeat_interleave(length, dim=1)[:, None, None, :]  # (B, 1, 1, S * (1 + N))
        attended = functional.scaled_dot_product_attention(
            self._split(query),
            self._split(key),
            self._split(value),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, H, 1, D / H)
        attended = attended.transpose(1, 2).reshape(batch, dim)  # (B, D)
        feature = functional.linear(attended, self.out_weight[index], self.out_bias[index])
        if present is not None:
            feature = feature * _of(present, subset).any(dim=1, keepdim=True).to(feature.dtype)
        return feature

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T, D / H)
        return heads


def _of(x: Tensor, subset: tuple[int, ...]) -> Tensor:
    """What belongs to the modalities of a subset: `(B, M, ...)` -> `(B, S, ...)`.

    Slices and no index: a list of numbers would be copied to the device at every call, and waited for.
    """
    return torch.stack([x[:, modality] for modality in subset], dim=1)
