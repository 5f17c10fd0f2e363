"""The names of backbones, and checks that a timm ViT has every part that is used of it, when it is built."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import timm
from timm.layers.attention import Attention, AttentionRope
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import nn

from trireid.errors import InputError

ViT: TypeAlias = VisionTransformer | Eva
"""The two classes of timm that hold all families below: EVA's has rotary positions."""

MODULES = ("vision_transformer", "eva")
"""Modules of timm whose models they are."""

FAMILIES = (
    "ViT, FlexiViT, BEiT-3, CLIP, DINOv2, DINOv3, SigLIP, SigLIP 2, EVA, EVA-02, RoPE-ViT, Perception Encoder, AIMv2"
)
"""Families of timm that can be backbones, for messages; docs/backbones.md has the table."""


ALIASES: MappingProxyType[str, str] = MappingProxyType(
    {
        "clip_vit_b16": "vit_base_patch16_clip_quickgelu_224.openai",
        "vit_b16": "vit_base_patch16_224.augreg_in21k",
        "dinov2_vit_s14": "vit_small_patch14_dinov2.lvd142m",
    }
)
"""Short names of backbones -> timm names. `tiny` is ours, for the CPU, and has no pretrained weights."""


def backbone_names(pattern: str = "*") -> list[str]:
    """The names that `model.backbone.name` takes: `tiny`, the short names, and those of timm without their tags.

    Args:
        pattern: which of them, with `*` for any characters.

    Example:
        >>> backbone_names("*vit_b16"), backbone_names("resnet*")
        (['clip_vit_b16', 'vit_b16'], [])
        >>> "vit_base_patch16_dinov3" in backbone_names("*dinov3*")
        True
    """
    known = ["tiny", *ALIASES, *(name for module in MODULES for name in timm.list_models(module=module))]
    return [name for name in known if fnmatchcase(name, pattern)]


def near_names(name: str) -> list[str]:
    """At most three names of backbones that are spelled nearly like this one, or else contain it."""
    name, known = name.lower().replace("-", "_").replace("/", "_"), backbone_names()
    containing = sorted((each for each in known if name and name in each), key=len)
    # Below 0.8, all that is alike is the ending: patch16_224.
    return difflib.get_close_matches(name, known, n=3, cutoff=0.8) or containing[:3]


class AttentionLayer(NamedTuple):
    """One self-attention of a block, and the norm that its input passes first."""

    norm: nn.Module
    attention: Attention | EvaAttention | AttentionRope


def attention_layers(block: nn.Module) -> tuple[AttentionLayer, ...]:
    """The self-attentions of a block that see its input; none for a block of another kind, whose order is not known."""
    parts: Any = block
    pairs: list[tuple[nn.Module, nn.Module]] = []
    if isinstance(block, Block | EvaBlock):
        pairs = [(parts.norm1, parts.attn)]
    elif isinstance(block, ResPostBlock | EvaBlockPostNorm):  # its norms follow attention and MLP
        pairs = [(nn.Identity(), parts.attn)]
    elif isinstance(block, ParallelThingsBlock):
        pairs = [(branch.norm, branch.attn) for branch in parts.attns]
    known = Attention | EvaAttention | AttentionRope
    return tuple(AttentionLayer(norm, attention) for norm, attention in pairs if isinstance(attention, known))


def check_vit(vit: ViT, *, reads_attention: bool) -> None:
    """Refuse a ViT that lacks a part that is used, or has a part that would be ignored.

    Args:
        vit: of timm.
        reads_attention: a cut chooses by the attention of its blocks, or learns from it.

    Raises:
        InputError: the first thing that does not fit.
    """
    if vit.pos_embed is None and getattr(vit, "rope", None) is None:
        raise InputError(
            f"the backbone must have positions, learned or rotary: families of timm that do are {FAMILIES}"
        )
    filters: nn.Module = vit.patch_embed.proj
    tiles = isinstance(filters, nn.Conv2d) and filters.stride == filters.kernel_size and filters.padding == (0, 0)
    if not tiles:
        raise InputError(
            "the backbone must make its patches by one convolution, each pixel in one patch: families of timm that do "
            f"are {FAMILIES}"
        )
    pool = None if isinstance(vit.attn_pool, AttentionPoolLatent) else vit.attn_pool
    unused = {f"pooling by {type(pool).__name__}": pool, "random dropping of patches": vit.patch_drop}
    surplus = next((what for what, part in unused.items() if not isinstance(part, nn.Identity | None)), None)
    if surplus is not None:
        raise InputError(
            f"the backbone has {surplus}, which would go without use here: families of timm that can be used are "
            f"{FAMILIES}"
        )
    strange = next((block for block in vit.blocks if not attention_layers(block)), None)
    if reads_attention and strange is not None:
        raise InputError(
            f"the blocks of the backbone ({type(strange).__name__}) do not show their attention, which a cut of "
            "guidance cls_attention, learned or consensus needs: use guidance both, self, cross, distinct or random in "
            "model.slimming, or another backbone"
        )
