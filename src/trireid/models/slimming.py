"""Slimming inside the ViT: after chosen blocks only some patches go on; the dropped ones are fused into one token.

Everything works on rows: R of the B * M images, those whose modality is present. The scores that choose come from
`trireid.models.guidance`. Shapes: R rows, N patches still there, K kept, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models import selection as select
from trireid.models.matching import mass_bias, merge_matched
from trireid.names import Dropped, Guidance
from trireid.types import Selection


@dataclass(frozen=True)
class SlimmingStage:
    """One cut.

    Attributes:
        after_block: blocks that saw all patches of before, counted from 1.
        keep_ratio: share of the patches still there that goes on, in (0, 1].
        guidance: `self`, `cross` or `both` (cosine with CLS tokens), `distinct` (unlike the mean patch of its image,
            summed with the mean of that over the modalities at its place of the grid), `learned` (a predictor that
            sees the CLS tokens), `consensus` (the same, summed with the mean over the modalities at its place),
            `cls_attention` (as EViT), `matching` (pairs that are alike are merged, as ToMe does, down to half of the
            patches at most), `random`, or `none`, which drops nothing and is the control.
        dropped: `fuse` makes one token of all dropped patches; `merge` also averages each into the kept patch that it
            resembles most, weighted by the patches that each stands for.
    """

    after_block: int
    keep_ratio: float
    guidance: Guidance = "consensus"
    dropped: Dropped = "fuse"

    @property
    def is_learned(self) -> bool:
        """Whether the guidance has a predictor with weights of its own."""
        return self.guidance in ("learned", "consensus")

    @property
    def reads_attention(self) -> bool:
        """Whether the guidance needs the attention of blocks: to choose by it, or to learn from it."""
        return self.is_learned or self.guidance in ("cls_attention", "matching")


class RowTokens(NamedTuple):
    """Tokens on their way through the blocks.

    Attributes:
        sequence: `(R, P + N (+ 1), D)`: the tokens before the patches, patches, and after the first cut the fused
            token.
        positions: `(R, N)` int64 place of each patch in the original grid.
        num_fused: patches that went into the fused token.
        mass: `(R, N)` float32, how many patches each stands for once others were merged into it; None before that.
        num_prefix: P: the class token where there is one, then register tokens.
        has_cls: whether the first token is the class token.
    """

    sequence: Tensor
    positions: Tensor
    num_fused: int = 0
    mass: Tensor | None = None
    num_prefix: int = 1
    has_cls: bool = True

    @property
    def cls(self) -> Tensor:
        """`(R, 1, D)`, the mean of the patches where there is no class token."""
        return self.sequence[:, :1] if self.has_cls else self.patches.mean(dim=1, keepdim=True)

    @property
    def prefix(self) -> Tensor:
        """`(R, P, D)`: what no cut drops."""
        return self.sequence[:, : self.num_prefix]

    @property
    def patches(self) -> Tensor:
        """`(R, N, D)`."""
        return self.sequence[:, self.num_prefix : self.num_prefix + self.positions.shape[1]]

    @property
    def fused(self) -> Tensor | None:
        """`(R, 1, D)`, None before the first cut."""
        return self.sequence[:, -1:] if self.num_fused else None

    @property
    def attention_bias(self) -> Tensor | None:
        """`(R, 1, 1, T)`, proportional attention where patches were merged and none was dropped; None elsewhere."""
        if self.mass is None or self.num_fused:
            return None
        return mass_bias(self.mass, num_prefix=self.num_prefix, dtype=self.sequence.dtype)


def check_stages(stages: tuple[SlimmingStage, ...], *, num_blocks: int, num_patches: int) -> tuple[int, ...]:
    """Validate cuts against a backbone and return the number of patches after each.

    Raises:
        InputError: naming the setting: a block out of range, repeated or out of order, a ratio outside (0, 1], an
            unknown guidance, or a cut with fewer than two patches to choose from.
    """
    counts, last = [], 0
    for index, stage in enumerate(stages):
        where = f"model.slimming[{index}]"
        if not 1 <= stage.after_block < num_blocks:
            raise InputError(
                f"{where}.after_block is {stage.after_block}; allowed is 1 to {num_blocks - 1}, since the backbone "
                f"has {num_blocks} blocks and a cut after the last saves nothing"
            )
        if stage.after_block <= last:
            raise InputError(
                f"{where}.after_block is {stage.after_block}; it must be greater than the one before, {last}"
            )
        if not 0.0 < stage.keep_ratio <= 1.0:
            raise InputError(f"{where}.keep_ratio is {stage.keep_ratio}; it must lie in (0, 1]")
        for setting, allowed in (("guidance", Guidance), ("dropped", Dropped)):
            given = getattr(stage, setting)
            if given not in get_args(allowed):
                raise InputError(f"{where}.{setting} is {given!r}; allowed are {', '.join(get_args(allowed))}")
        if stage.guidance == "matching" and stage.keep_ratio < 0.5:
            raise InputError(
                f"{where}.keep_ratio is {stage.keep_ratio}; guidance matching merges pairs, so it keeps at least 0.5"
            )
        if num_patches < 2:
            raise InputError(f"{where} has {num_patches} patch to choose from: use larger images or fewer cuts")
        if stage.guidance != "none":
            num_patches = select.keep_count(num_patches, stage.keep_ratio)
        counts.append(num_patches)
        last = stage.after_block
    return tuple(counts)


def cut(
    tokens: RowTokens,
    stage: SlimmingStage,
    *,
    scores: Tensor,
    grid: tuple[int, int],
    keys: Tensor | None = None,
) -> tuple[RowTokens, Selection]:
    """Keep the best patches of every row and fuse the others into the one fused token.

    Scores with a gradient are trained by the fused token, which weighs the dropped patches by them.

    Args:
        tokens: rows before the cut.
        stage: what to keep.
        scores: `(R, N)` float32.
        grid: the original patch grid.
        keys: `(R, N, d)` where the guidance is `matching`, which merges and fuses nothing.

    Returns:
        rows after the cut (patches stay in grid order), and the selection with indices `(R, K)` in the original grid.
    """
    num_patches = tokens.patches.shape[1]
    num_kept = select.keep_count(num_patches, stage.keep_ratio)
    indices, mask = select.select_top(scores.detach(), num_kept)  # (R, K), (R, N)
    positions = tokens.positions.gather(1, indices)
    chosen = selection_in_grid(positions, mask, tokens.positions, scores, grid)
    if num_kept == num_patches:
        return tokens, chosen
    patches, mass = tokens.patches, tokens.mass
    if keys is not None:
        mass = torch.ones_like(scores) if mass is None else mass
        merged, mass = merge_matched(patches, mass, keys, indices, mask)  # (R, K, D), (R, K)
        parts = [tokens.prefix, merged] + ([] if tokens.fused is None else [tokens.fused])
        return tokens._replace(sequence=torch.cat(parts, dim=1), positions=positions, mass=mass), chosen
    fused = select.fuse_dropped(patches, scores, mask).unsqueeze(1)  # (R, 1, D)
    if stage.dropped == "merge":
        mass = torch.ones_like(scores.detach()) if mass is None else mass
        kept, mass = merge_dropped(patches, mass, indices, mask)  # (R, K, D), (R, K)
    else:
        kept = select.gather_patches(patches, indices)
        mass = None if mass is None else mass.gather(1, indices)
    num_dropped = num_patches - num_kept
    total = tokens.num_fused + num_dropped
    if tokens.fused is not None:
        # Every patch that was ever dropped keeps the same share of the one fused token.
        fused = (tokens.fused * tokens.num_fused + fused * num_dropped) / total
    sequence = torch.cat([tokens.prefix, kept, fused], dim=1)  # (R, P + K + 1, D)
    # Not `_replace`: a compiled cut of torch 2.11 gives an empty tuple for it.
    return RowTokens(sequence, positions, total, mass, tokens.num_prefix, tokens.has_cls), chosen


def merge_dropped(patches: Tensor, mass: Tensor, indices: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Average every dropped patch into the kept one that it resembles most (largest cosine).

    Args:
        patches: `(R, N, D)`; mass: `(R, N)`, how many patches each stands for.
        indices: `(R, K)` kept; mask: `(R, N)` bool, true where kept.

    Returns:
        patches `(R, K, D)` and their mass `(R, K)`; all mass is kept.

    Source: the idea of merging similar tokens by their size is that of ToMe (ICLR 2023), section 3; there pairs are
        matched between two halves, here the choice says who stays.
    """
    num_dropped = mask.shape[1] - indices.shape[1]
    gone = select.true_places(~mask, num_dropped)  # (R, N - K)
    kept, dropped = (select.gather_patches(patches, place) for place in (indices, gone))
    with torch.no_grad():
        unit_kept, unit_dropped = (nn.functional.normalize(each, dim=-1) for each in (kept, dropped))
        nearest = (unit_dropped @ unit_kept.transpose(1, 2)).argmax(dim=-1)  # (R, N - K)
        belongs = mass.new_zeros(*nearest.shape, indices.shape[1]).scatter_(2, nearest.unsqueeze(-1), 1.0)
        share = belongs.transpose(1, 2) * mass.gather(1, gone).unsqueeze(1)  # (R, K, N - K)
        own = mass.gather(1, indices)  # (R, K)
        total = own + share.sum(dim=-1)
    merged = kept * (own / total).unsqueeze(-1).to(kept.dtype)
    return merged + (share / total.unsqueeze(-1)).to(kept.dtype) @ dropped, total


def selection_in_grid(
    kept: Tensor, mask: Tensor, positions: Tensor, scores: Tensor, grid: tuple[int, int]
) -> Selection:
    """A `Selection` over the original grid out of one among the patches that are still there.

    Args:
        kept: `(..., K)` positions in the original grid of the patches kept.
        mask: `(..., N)` bool, the patches kept among those still there.
        positions: `(..., N)` in the original grid of those still there.
        scores: `(..., N)` of those still there.
        grid: the original patch grid.
    """
    shape = (*positions.shape[:-1], grid[0] * grid[1])
    full = scores.new_full(shape, float("-inf"), dtype=torch.float32).scatter(-1, positions, scores.detach().float())
    everywhere = torch.zeros(shape, dtype=torch.bool, device=scores.device).scatter(-1, positions, mask)
    return Selection(indices=kept, scores=full, mask=everywhere, grid=grid)


def kept_scores(inside: Selection) -> Tensor:
    """Scores `(B, M, K)` of the patches that a cut kept, in their order, so that a head can go on with them."""
    return inside.scores.gather(-1, inside.indices)


def in_original_grid(chosen: Selection, inside: Selection) -> Selection:
    """A selection made among kept patches, expressed in the grid of the selection that kept them.

    Args:
        chosen: over the K patches that `inside` kept; indices `(B, M, K2)`.
        inside: over the original grid; indices `(B, M, K)`. Both report absent modalities as zeros.
    """
    kept = inside.indices.gather(-1, chosen.indices)
    composed = selection_in_grid(kept, chosen.mask, inside.indices, chosen.scores, inside.grid)
    # An absent modality has index 0 K times over: no patch of it is kept, none was dropped with a score of its own.
    absent = ~inside.mask.any(dim=-1, keepdim=True)
    return replace(composed, scores=composed.scores.masked_fill(absent, 0.0), weights=chosen.weights)
