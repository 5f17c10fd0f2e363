"""Names of the tensors of a ViT: OpenAI's for the visual tower of CLIP, timm's here. Plain rules, no files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def is_upstream(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of an upstream checkpoint (of any completeness)."""
    return any(key.removeprefix("module.").startswith("BACKBONE.") for key in state)


def same(tensors: list[Tensor]) -> Tensor:
    """The one tensor as it is."""
    return tensors[0]


@dataclass(frozen=True)
class Rule:
    """How one tensor of ours is made.

    Attributes:
        target: our name.
        sources: names in the file; all must be there.
        make: from the tensors of the sources, in that order.
    """

    target: str
    sources: tuple[str, ...]
    make: Callable[[list[Tensor]], Tensor] = same


_CLIP_BLOCK = (
    ("norm1.weight", "ln_1.weight"),
    ("norm1.bias", "ln_1.bias"),
    ("attn.qkv.weight", "attn.in_proj_weight"),
    ("attn.qkv.bias", "attn.in_proj_bias"),
    ("attn.proj.weight", "attn.out_proj.weight"),
    ("attn.proj.bias", "attn.out_proj.bias"),
    ("norm2.weight", "ln_2.weight"),
    ("norm2.bias", "ln_2.bias"),
    ("mlp.fc1.weight", "mlp.c_fc.weight"),
    ("mlp.fc1.bias", "mlp.c_fc.bias"),
    ("mlp.fc2.weight", "mlp.c_proj.weight"),
    ("mlp.fc2.bias", "mlp.c_proj.bias"),
)
_CLIP_NORMS = (("norm_pre", "ln_pre"), ("norm", "ln_post"))
_TIMM_TOP = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias")


def clip_rules(*, depth: int, dim: int, prefix: str = "", target: str = "") -> list[Rule]:
    """Rules of a CLIP visual tower.

    Args:
        depth: number of blocks.
        dim: width of the projection; it has no bias, so timm's is 0.
        prefix: before the names of the file.
        target: before timm's names.
    """
    rules = [
        Rule(f"{target}cls_token", (f"{prefix}class_embedding",), lambda t: t[0].reshape(1, 1, -1)),
        Rule(f"{target}pos_embed", (f"{prefix}positional_embedding",), lambda t: t[0].unsqueeze(0)),
        Rule(f"{target}patch_embed.proj.weight", (f"{prefix}conv1.weight",)),
        Rule(f"{target}head.weight", (f"{prefix}proj",), lambda t: t[0].T.contiguous()),
        Rule(f"{target}head.bias", (), lambda _: torch.zeros(dim)),
    ]
    for ours, theirs in _CLIP_NORMS:
        rules += [Rule(f"{target}{ours}.{part}", (f"{prefix}{theirs}.{part}",)) for part in ("weight", "bias")]
    for index in range(depth):
        block = f"{prefix}transformer.resblocks.{index}."
        rules += [Rule(f"{target}blocks.{index}.{ours}", (f"{block}{theirs}",)) for ours, theirs in _CLIP_BLOCK]
    return rules


def timm_rules(*, depth: int, prefix: str, target: str) -> list[Rule]:
    """Rules of an ImageNet tower, whose names are timm's already."""
    names = [*_TIMM_TOP]
    names += [f"blocks.{index}.{ours}" for index in range(depth) for ours, _ in _CLIP_BLOCK]
    return [Rule(f"{target}{name}", (f"{prefix}{name}",)) for name in names]


def count_blocks(names: Iterable[str], stem: str) -> int:
    """Number of blocks by the highest index behind a stem such as `transformer.resblocks.`; 0 where there is none."""
    pattern = re.compile(re.escape(stem) + r"(\d{1,2})\.")
    return max((int(found[1]) + 1 for name in names if (found := pattern.match(name))), default=0)


def without_late_blocks(tensors: Mapping[str, Tensor], depth: int | None) -> tuple[dict[str, Tensor], int]:
    """The tensors of a ViT in timm's names without the blocks from number `depth` on, and how many blocks those are.

    Args:
        tensors: by name.
        depth: number of blocks to keep; None keeps all.

    Example:
        >>> tensors = dict.fromkeys(("blocks.0.x", "blocks.1.x", "norm.x"), torch.ones(1))
        >>> kept, left_out = without_late_blocks(tensors, 1)
        >>> sorted(kept), left_out
        (['blocks.0.x', 'norm.x'], 1)
    """
    if depth is None:
        return dict(tensors), 0
    block = {name: int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d{1,2})\.", name)) is not None}
    late = {number for number in block.values() if number >= depth}
    kept = {name: value for name, value in tensors.items() if block.get(name) not in late}
    if late and kept.get("rope.freqs", torch.empty(0)).dim() == 4:  # rotary frequencies (2, blocks, heads, channels)
        kept["rope.freqs"] = kept["rope.freqs"][:, :depth].contiguous()
    return kept, len(late)


def clip_prefix(names: Iterable[str]) -> str | None:
    """What stands before the names of a CLIP visual tower: `visual.`, nothing, or None where it is no CLIP."""
    known = set(names)
    return next((prefix for prefix in ("visual.", "") if f"{prefix}class_embedding" in known), None)
