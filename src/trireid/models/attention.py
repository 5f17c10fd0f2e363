"""How much attention patches get in a block of a ViT: recomputed from its input, since fused kernels do not show it.

Shapes: R rows, T tokens, P of them before the patches, N patches, H heads, d channels of a head, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor, nn

from trireid.models.vit_parts import AttentionLayer, attention_layers


@torch.no_grad()
def attention_scores(
    block: nn.Module,
    before: Tensor,
    *,
    num_patches: int,
    num_prefix: int = 1,
    has_cls: bool = True,
    rope: Tensor | None = None,
) -> Tensor:
    """Attention of the class token to the patches in this block, mean over heads; no gradient passes.

    Without a class token it is the mean attention of all patches. A block with several attentions side by side gives
    the mean of them.

    Source: EViT (ICLR 2022), section 3.2.

    Args:
        block: the timm block that was just run; `vit_parts.check_vit` has seen that it shows its attention.
        before: `(R, T, D)`, its input: P tokens (the class token first), patches, and the fused token if there is one.
        num_patches: N.
        num_prefix: P.
        has_cls: whether the first token is the class token.
        rope: the rotary positions that the block was run with, see `trireid.models.rotary`; None: it has none.

    Returns:
        `(R, N)` float32.
    """
    asking = slice(0, 1) if has_cls else slice(num_prefix, num_prefix + num_patches)
    scores = [
        _attention(layer, before, asking=asking, num_prefix=num_prefix, rope=rope) for layer in attention_layers(block)
    ]
    return torch.stack(scores).mean(dim=0)[:, num_prefix : num_prefix + num_patches]


@torch.no_grad()
def attention_keys(block: nn.Module, before: Tensor, *, num_patches: int, num_prefix: int = 1) -> Tensor:
    """Keys `(R, N, d)` of the patches in this block, the mean over heads, before any rotary positions.

    Args: as `attention_scores`.
    """
    layer = attention_layers(block)[0]
    attention: Any = layer.attention
    patches = layer.norm(before)[:, num_prefix : num_prefix + num_patches]
    keys: Tensor = attention.k_norm(_projected(attention, patches, 1)).mean(dim=2)
    return keys


def _attention(layer: AttentionLayer, before: Tensor, *, asking: slice, num_prefix: int, rope: Tensor | None) -> Tensor:
    """Attention `(R, T)` of some tokens to all tokens of `(R, T, D)`, mean over heads and those tokens."""
    attention: Any = layer.attention
    normed = layer.norm(before)
    query = attention.q_norm(_projected(attention, normed[:, asking], 0))  # (R, q, H, d)
    key = attention.k_norm(_projected(attention, normed, 1))  # (R, T, H, d)
    if rope is not None:
        half = bool(getattr(attention, "rotate_half", False))
        turned = key[:, num_prefix:].transpose(1, 2)
        key = torch.cat([key[:, :num_prefix], _turned(turned, rope, half).transpose(1, 2)], dim=1)
        if asking.start >= num_prefix:  # the class token is not turned
            own = rope[..., : query.shape[1], :]
            query = _turned(query.transpose(1, 2), own, half).transpose(1, 2)
    if query.shape[2] != key.shape[2]:  # several heads share their keys
        key = key.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    logits = torch.einsum("rqhd,rnhd->rqhn", query, key).float() * attention.scale
    scores: Tensor = logits.softmax(dim=-1).mean(dim=(1, 2))
    return scores


def _turned(values: Tensor, rope: Tensor, half: bool) -> Tensor:
    """Values `(R, H, T, d)` turned by rotary positions."""
    turned: Tensor = apply_rot_embed_cat(values, rope, half=half)
    return turned


def _projected(attention: Any, tokens: Tensor, which: int) -> Tensor:
    """Queries (which 0) or keys (1) of tokens `(R, T, D)`, by head: `(R, T, H, d)`."""
    if attention.qkv is None:
        projected: Tensor = (attention.q_proj, attention.k_proj)[which](tokens)
    else:
        bias = attention.qkv.bias
        if bias is not None:
            bias = bias.chunk(3)[which]
        elif getattr(attention, "q_bias", None) is not None:  # EVA's keys have none, it is a buffer of zeros
            bias = (attention.q_bias, attention.k_bias)[which]
        projected = nn.functional.linear(tokens, attention.qkv.weight.chunk(3)[which], bias)
    by_head: Tensor = projected.unflatten(-1, (-1, attention.head_dim))
    return by_head
