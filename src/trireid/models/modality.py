"""Layers with one set of weights per modality, applied in one call. Modality is an axis, not three variables."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAST_DEVIATION = 0.03
"""Of a normalised image: about two of the 256 levels of an 8-bit image."""


def standardised(images: Tensor) -> Tensor:
    """Each image `(R, 3, H, W)` less its mean and divided by its standard deviation, of all channels together.

    Gain and offset of a camera or an exposure then do not matter. What has less contrast than `LEAST_DEVIATION` is not
    brought to full contrast, since that would be noise alone.

    Example:
        >>> image = torch.rand(1, 3, 8, 8)
        >>> torch.allclose(standardised(image), standardised(0.5 * image + 2.0), atol=1e-4)
        True
    """
    exact = images if images.dtype == torch.float64 else images.float()
    centred = exact - exact.mean(dim=(1, 2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return (centred / deviation.clamp_min(LEAST_DEVIATION)).to(images.dtype)


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, the activation of CLIP and of DeMo's reductions. Source: CLIP public code."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation; any shape."""
        return x * torch.sigmoid(1.702 * x)


class ModalityLinear(nn.Module):
    """One linear map per modality: `(B, M, ..., D) -> (B, M, ..., O)`.

    Initialised as torch's own `nn.Linear` (uniform within 1 / sqrt(in_features)).
    """

    def __init__(self, num_modalities: int, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_modalities, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_modalities, out_features)) if bias else None
        bound = 1.0 / math.sqrt(in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, M, ..., in_features)` to `(B, M, ..., out_features)`."""
        flat = x.flatten(2, -2) if x.dim() > 3 else x.unsqueeze(2)  # (B, M, S, D)
        out = torch.einsum("bmsd,mod->bmso", flat, self.weight)  # (B, M, S, O)
        if self.bias is not None:
            out = out + self.bias[:, None, :].to(out.dtype)
        return out.reshape(*x.shape[:-1], out.shape[-1])  # (B, M, ..., O)


class ModalityLayerNorm(nn.Module):
    """Layer normalisation with one scale and shift per modality: `(B, M, ..., D) -> (B, M, ..., D)`."""

    def __init__(self, num_modalities: int, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_modalities, dim))
        self.bias = nn.Parameter(torch.zeros(num_modalities, dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of `(B, M, ..., D)`."""
        shape = (self.weight.shape[0], *([1] * (x.dim() - 3)), self.weight.shape[1])
        normed = functional.layer_norm(x, x.shape[-1:], eps=self.eps)
        return normed * self.weight.view(shape) + self.bias.view(shape)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a training batch of any size: `(B, F) -> (B, F)`.

    One item has no variance, and none has no mean: such a batch is seen with the running statistics, which it does not
    change. Keys and all else are those of torch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, F)`."""
        if self.training and x.shape[0] < 2:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(x)


def mask_absent(x: Tensor, present: Tensor | None) -> Tensor:
    """Set what belongs to absent modalities to zero: x `(B, M, ...)`, present `(B, M)` bool or None (all present)."""
    if present is None:
        return x
    return torch.where(present.view(*present.shape, *([1] * (x.dim() - 2))), x, 0.0)
