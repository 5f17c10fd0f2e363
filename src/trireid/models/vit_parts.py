"""Checks that a timm ViT has every part that is used of it, when the backbone is built."""

from __future__ import annotations

from typing import Any, NamedTuple

from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, ParallelThingsBlock, VisionTransformer
from torch import nn

from trireid.errors import InputError


class AttentionLayer(NamedTuple):
    """One self-attention of a block, and the norm that its input passes first."""

    norm: nn.Module
    attention: Attention


def attention_layers(block: nn.Module) -> tuple[AttentionLayer, ...]:
    """The self-attentions of a block that see its input; none for a block of another kind, whose order is not known."""
    parts: Any = block
    if isinstance(block, Block):
        pairs = [(parts.norm1, parts.attn)]
    elif isinstance(block, ParallelThingsBlock):
        pairs = [(branch.norm, branch.attn) for branch in parts.attns]
    else:
        return ()
    return tuple(AttentionLayer(norm, attention) for norm, attention in pairs if isinstance(attention, Attention))


def check_vit(vit: VisionTransformer, *, reads_attention: bool) -> None:
    """Refuse a ViT that lacks a part that is used, or has a part that would be ignored.

    Args:
        vit: of timm.
        reads_attention: a cut chooses by the attention of its blocks, or learns from it.

    Raises:
        InputError: the first thing that does not fit.
    """
    if vit.cls_token is None or vit.num_prefix_tokens != 1 or vit.pos_embed is None or vit.no_embed_class:
        raise InputError("the backbone must have a CLS token, no register tokens and a learned position table")
    filters: nn.Module = vit.patch_embed.proj
    tiles = isinstance(filters, nn.Conv2d) and filters.stride == filters.kernel_size and filters.padding == (0, 0)
    if not tiles:
        raise InputError("the backbone must make its patches by one convolution, each pixel in one patch")
    unused = {"attention pooling": vit.attn_pool, "random dropping of patches": vit.patch_drop}
    surplus = next((what for what, part in unused.items() if not isinstance(part, nn.Identity | None)), None)
    if surplus is not None:
        raise InputError(f"the backbone has {surplus}, which would go without use here: give another ViT")
    strange = next((block for block in vit.blocks if not attention_layers(block)), None)
    if reads_attention and strange is not None:
        raise InputError(
            f"the blocks of the backbone ({type(strange).__name__}) do not show their attention, which a cut of "
            "guidance cls_attention, learned or consensus needs: use guidance both, self, cross, distinct or random in "
            "model.slimming, or another backbone"
        )
