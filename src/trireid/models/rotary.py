"""Rotary positions of a ViT whose patches may be dropped: each kept patch is turned as at its place in the grid.

timm turns queries and keys of the tokens that follow the prefix (class and register tokens). So does this module, and
it does not turn the fused token either: it stands for patches of many places.
Shapes: R rows, N places of the grid, K patches kept, H heads, d channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trireid.models.slimming import RowTokens


def switch_off_augmentation(vit: nn.Module) -> None:
    """Train with the positions of evaluation: timm would shift and scale those of some models at random."""
    rope: Any = getattr(vit, "rope", None)
    if getattr(rope, "aug_active", False):
        rope.aug_active = False


class Rotations:
    """What turns the queries and keys of the tokens, on their way through the blocks.

    Args:
        vit: of timm; without rotary positions nothing is turned.
        grid: (rows, columns) of the patches.
    """

    def __init__(self, vit: nn.Module, grid: tuple[int, int]) -> None:
        rope: Any = getattr(vit, "rope", None)
        self._table: Tensor | None = None  # (N, 2d), or (depth, H, N, 2d) where each block has its own: sines, cosines
        if rope is not None:
            is_kept = getattr(rope, "feat_shape", None) is not None
            self._table = rope.get_embed() if is_kept else rope.get_embed(shape=list(grid))
        self._last: tuple[Tensor, Tensor] | None = None

    def of(self, tokens: RowTokens, *, block: int) -> Tensor | None:
        """For a block, from 0: `(N, 2d)` or `(H, N, 2d)`; after a cut `(R, 1, K + 1, 2d)` or `(R, H, K + 1, 2d)`.

        None: the ViT has no rotary positions.
        """
        if self._table is None or self._table.dim() == 4:
            return None if self._table is None else turned_by(self._table[block], tokens)
        if self._last is None or self._last[0] is not tokens.positions:  # the same for all blocks until the next cut
            self._last = tokens.positions, turned_by(self._table, tokens)
        return self._last[1]


def turned_by(table: Tensor, tokens: RowTokens) -> Tensor:
    """The rows of a table `(N, 2d)` or `(H, N, 2d)` for the patches still there, and a row that turns nothing."""
    if not tokens.num_fused:
        return table
    half = table.shape[-1] // 2
    still = torch.cat([table.new_zeros(half), table.new_ones(half)])  # sines, cosines
    full = torch.cat([table, still.expand(*table.shape[:-2], 1, -1)], dim=-2)
    fused = torch.full_like(tokens.positions[:, :1], table.shape[-2])
    places = torch.cat([tokens.positions, fused], dim=1)  # (R, K + 1)
    if table.dim() == 2:
        return full[places].unsqueeze(1)  # (R, 1, K + 1, 2d)
    return full[:, places].transpose(0, 1)  # (R, H, K + 1, 2d)
