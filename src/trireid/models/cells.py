"""Slots that are places: each is a weighted mean of the patches of one cell of a coarse grid over the image.

Learned slots may take any patch, so two images of one scene need not agree in what a slot shows. A cell shows the same
place in both. Shapes: B batch, M modality, N patches, A cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trireid.errors import InputError


def cell_of_place(grid: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """The cell of every place of a patch grid, `(rows * columns,)` int64; cells are numbered row by row.

    Raises:
        InputError: more cells than rows or columns.

    Example:
        >>> cell_of_place((2, 4), (1, 2)).tolist()
        [0, 0, 1, 1, 0, 0, 1, 1]
    """
    if not (1 <= cells[0] <= grid[0] and 1 <= cells[1] <= grid[1]):
        raise InputError(
            f"{cells[0]} x {cells[1]} cells do not fit a grid of {grid[0]} x {grid[1]} patches: model.sdtps.cells may "
            f"be at most [{grid[0]}, {grid[1]}]"
        )
    row = torch.arange(grid[0]) * cells[0] // grid[0]  # (rows,)
    column = torch.arange(grid[1]) * cells[1] // grid[1]  # (columns,)
    return (row[:, None] * cells[1] + column).flatten()


def cell_softmax(logits: Tensor, decision: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Softmax of the patches within each cell, every patch multiplied by its decision first.

    Args:
        logits: `(..., N)`.
        decision: `(..., N)` in [0, 1], 1 kept; the gradient passes through it.
        cell: `(..., N)` int64 below num_cells.
        num_cells: A.

    Returns:
        `(..., A, N)` float32; a row sums to 1, or is 0 where a cell has no patch with a decision above 0.
    """
    inside = cell.unsqueeze(-2) == torch.arange(num_cells, device=cell.device).unsqueeze(-1)  # (..., A, N)
    logits = logits.float().unsqueeze(-2).expand(inside.shape)
    counted = inside & (decision.detach() > 0).unsqueeze(-2)
    top = logits.detach().masked_fill(~counted, float("-inf")).amax(dim=-1, keepdim=True)  # (..., A, 1)
    top = top.masked_fill(top == float("-inf"), 0.0)  # an empty cell
    # Logits of dropped patches above the largest kept one are capped there, as in `selection.masked_softmax`.
    weight = decision.float().unsqueeze(-2) * torch.exp((logits - top).clamp_max(0.0)) * inside
    total = weight.sum(dim=-1, keepdim=True)
    return weight / torch.where(total > 0, total, 1.0)  # a tiny number in place of 0 would make gradients explode
