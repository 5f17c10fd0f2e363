"""Which patches of a triplet were kept, and why: pure functions from a selection to pixels, and figures of them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from enum import IntEnum

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from trireid.data.records import Record
from trireid.errors import InputError
from trireid.models.selection import fused_weights
from trireid.types import MODALITIES, Selection
from trireid.visualize.text import shown
from trireid.visualize.triplets import spectrum_image

DIMMED, GONE = 0.25, 0.08
"""Share of its own brightness that a patch keeps which is dropped here, and one that was dropped before."""
TINT = (230, 159, 0)
"""Colour of dropped patches, the stronger the more weight they have in the fused token."""
STRONGEST_TINT = 0.5
HEAT_COLORS = "viridis"
NO_SCORE = (38, 38, 38)
TITLE_LETTERS = 11
"""Letters of a title to an inch."""
LEGEND_WIDTH = 6.5
"""Inches that the legend takes in one line."""

Pixels = NDArray[np.uint8]


class PatchState(IntEnum):
    """What a cut did with a patch: `GONE` ones had been dropped before it."""

    GONE = 0
    DROPPED = 1
    KEPT = 2


def patch_states(selection: Selection) -> Tensor:
    """`PatchState` of every patch, `(B, M, N)` int64; dropped patches go into the fused token."""
    dropped = torch.where(selection.scores == -torch.inf, PatchState.GONE, PatchState.DROPPED)
    return torch.where(selection.mask, PatchState.KEPT, dropped)


def slot_maps(selection: Selection) -> Tensor:
    """Weight of every patch in every aggregated slot, `(B, M, A, N)` float32, 0 for dropped patches.

    Raises:
        InputError: nothing was aggregated at this stage.
    """
    weights = selection.weights
    if weights is None:
        raise InputError("this selection has no slot weights; those of the stage `sdtps` have")
    maps = weights.new_zeros(*weights.shape[:-1], selection.mask.shape[-1])  # (B, M, A, N)
    return maps.scatter_add(-1, selection.indices.unsqueeze(2).expand_as(weights), weights)


def patch_pixels(values: Tensor, *, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The value of its patch at every pixel: `(..., N)` of any type -> `(..., H, W)`.

    Args:
        values: one per patch, row by row.
        grid: (rows, columns) of patches, rows * columns == N.
        size: (height, width) in pixels, multiples of rows and columns.

    Raises:
        InputError: the grid does not hold N patches, or does not divide the size.
    """
    (rows, columns), (height, width) = grid, size
    if rows * columns != values.shape[-1]:
        raise InputError(f"a grid of {rows} x {columns} does not hold {values.shape[-1]} patches; give the selection's")
    if height % rows or width % columns:
        raise InputError(
            f"{height} x {width} pixels do not divide into {rows} x {columns} patches; give multiples of the grid"
        )
    patches = values.unflatten(-1, grid)  # (..., rows, columns)
    pixels: Tensor = patches.repeat_interleave(height // rows, dim=-2).repeat_interleave(width // columns, dim=-1)
    return pixels


def state_image(pixels: Pixels, states: Tensor, weights: Tensor, *, grid: tuple[int, int]) -> Pixels:
    """An image with its kept patches as they are, the dropped ones dim and tinted, those dropped before nearly black.

    Args:
        pixels: `(H, W, 3)`.
        states: `(N,)` of `PatchState`.
        weights: `(N,)`, weight of each dropped patch in the fused token; the largest has the strongest tint.
        grid: (rows, columns) of patches.
    """
    size = (pixels.shape[0], pixels.shape[1])
    state = patch_pixels(states, grid=grid, size=size).numpy()[..., None]  # (H, W, 1)
    share = torch.where(states == PatchState.DROPPED, weights.nan_to_num(0.0), 0.0)  # no number, no tint
    share = share / share.amax().clamp_min(torch.finfo(share.dtype).tiny)
    tint = STRONGEST_TINT * patch_pixels(share, grid=grid, size=size).numpy()[..., None]
    dropped = DIMMED * pixels * (1 - tint) + np.asarray(TINT) * tint
    drawn = np.where(state == PatchState.KEPT, pixels, np.where(state == PatchState.DROPPED, dropped, GONE * pixels))
    return drawn.round().astype(np.uint8)


def heat_image(
    pixels: Pixels, values: Tensor, *, grid: tuple[int, int], limits: tuple[float, float] | None = None
) -> Pixels:
    """An image in grey under the colours of one value per patch; patches without a value (-inf) are dark.

    Args:
        pixels: `(H, W, 3)`.
        values: `(N,)`.
        grid: (rows, columns) of patches.
        limits: values of the first and last colour; None takes the smallest and largest.
    """
    low, high = finite_limits(values) if limits is None else limits
    share = ((values - low) / max(high - low, 1e-12)).clamp(0.0, 1.0)
    size = (pixels.shape[0], pixels.shape[1])
    colors = matplotlib.colormaps[HEAT_COLORS](patch_pixels(share, grid=grid, size=size).numpy())[..., :3] * 255
    grey = pixels.mean(axis=2, keepdims=True)
    known = patch_pixels(values > -torch.inf, grid=grid, size=size).numpy()[..., None]
    return np.where(known, 0.35 * grey + 0.65 * colors, NO_SCORE).round().astype(np.uint8)


def finite_limits(values: Tensor) -> tuple[float, float]:
    """Smallest and largest finite value, (0, 0) where there is none."""
    known = values[values.isfinite()]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)


def patches_figure(
    record: Record,
    selections: Mapping[str, Selection],
    *,
    size: tuple[int, int],
    item: int = 0,
    title: str = "",
) -> Figure:
    """Draw a triplet and, for every cut, the scores and what was kept and dropped.

    One column per modality and one row per step where images are wider than high, else the other way round.

    Args:
        record: its images are read; absent ones become a hatched box and have no kept patches.
        selections: of a batch that holds this triplet by stage, `ReIDOutput.selection`.
        size: (height, width) that the model saw, so that patches and pixels agree.
        item: position of the triplet in the batch.
        title: written above.

    Returns:
        A figure with a map of every modality and step; nothing is saved.

    Raises:
        InputError: nothing was selected, or a grid does not divide the size.
    """
    if not selections:
        raise InputError("this model selects no patches (no head sdtps and no model.slimming); there is no map of them")
    steps = ["image", *(f"{name}: {what}" for name in selections for what in ("scores", "kept"))]
    figure, axes = map_grid(steps, size=size, title=title)
    for row, source in enumerate(record.images):
        pixels = np.asarray(spectrum_image(source, size))
        _show(axes[row][0], pixels)
        for step, selection in enumerate(selections.values()):
            heat, states = axes[row][1 + 2 * step], axes[row][2 + 2 * step]
            if source is None:
                _show(heat, pixels)
                _show(states, pixels)
                continue
            scores, mask = selection.scores[item].cpu(), selection.mask[item, row].cpu()
            limits = finite_limits(scores[[source is not None for source in record.images]])
            drawn = state_image(
                pixels,
                patch_states(selection)[item, row].cpu(),
                fused_weights(scores[row], mask),
                grid=selection.grid,
            )
            _show(heat, heat_image(pixels, scores[row], grid=selection.grid, limits=limits))
            _show(states, drawn, below=f"{int(mask.sum())} of {len(mask)} kept")
    for step, selection in enumerate(selections.values()):
        scores = selection.scores[item][[source is not None for source in record.images]]
        _color_bar(figure, [line[1 + 2 * step] for line in axes], finite_limits(scores), size=size)
    ncols = 3 if figure.get_figwidth() >= LEGEND_WIDTH else 1
    figure.legend(handles=_legend_entries(), loc="outside lower center", ncols=ncols, fontsize=8, frameon=False)
    return figure


def slots_figure(
    record: Record, selection: Selection, *, size: tuple[int, int], item: int = 0, title: str = "", num_slots: int = 8
) -> Figure:
    """Draw which kept patches the first aggregated slots are made of; arguments as `patches_figure`.

    Args:
        num_slots: slots shown, at most.

    Raises:
        InputError: nothing was aggregated, or a grid does not divide the size.
    """
    maps = slot_maps(selection)[item].cpu()  # (M, A, N)
    shown = range(min(num_slots, maps.shape[1]))
    figure, axes = map_grid(["image", *(f"slot {slot + 1}" for slot in shown)], size=size, title=title)
    for row, source in enumerate(record.images):
        pixels = np.asarray(spectrum_image(source, size))
        _show(axes[row][0], pixels)
        for slot in shown:
            values = maps[row, slot].masked_fill(~selection.mask[item, row].cpu(), -torch.inf)
            drawn = pixels if source is None else heat_image(pixels, values, grid=selection.grid)
            below = "" if source is None else f"up to {100 * float(maps[row, slot].max()):.0f} %"
            _show(axes[row][1 + slot], drawn, below=below)
    return figure


def map_grid(steps: list[str], *, size: tuple[int, int], title: str) -> tuple[Figure, list[list[Axes]]]:
    """A figure of a map for every modality and step; axes by modality, then step."""
    portrait = size[0] > size[1]
    rows, columns = (len(MODALITIES), len(steps)) if portrait else (len(steps), len(MODALITIES))
    scale = 2.0 / max(size)
    width = columns * (scale * size[1] + 0.25) + 0.6
    figure = Figure(figsize=(max(width, 4.0), rows * (scale * size[0] + 0.3) + 1.2), layout="constrained", dpi=130)
    shown_title = textwrap.fill(shown(title), int(TITLE_LETTERS * figure.get_figwidth()))
    figure.suptitle(shown_title, fontsize=10, parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = [
        [grid[row, step] if portrait else grid[step, row] for step in range(len(steps))]
        for row in range(len(MODALITIES))
    ]
    for row, name in enumerate(MODALITIES):
        axes[row][0].set(**({"ylabel": name} if portrait else {"title": name}))
    for step, name in enumerate(steps):
        words = name.replace(": ", "\n")
        if portrait:
            axes[0][step].set_title(words, fontsize=9)
        else:
            axes[0][step].set_ylabel(words, fontsize=9)
    return figure, axes


def _show(axis: Axes, pixels: Pixels, *, below: str = "") -> None:
    """One map without ticks."""
    axis.imshow(pixels, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(below, fontsize=7)


def _color_bar(figure: Figure, axes: list[Axes], limits: tuple[float, float], *, size: tuple[int, int]) -> None:
    """What the colours of one stage's scores mean."""
    norm = matplotlib.colors.Normalize(*limits)
    portrait = size[0] > size[1]
    bar = figure.colorbar(
        matplotlib.cm.ScalarMappable(norm, HEAT_COLORS),
        ax=axes,
        orientation="horizontal" if portrait else "vertical",
        fraction=0.04,
        pad=0.01,
        ticks=list(dict.fromkeys(limits)),
        format="%.2g",
    )
    bar.ax.tick_params(labelsize=7)


def _legend_entries() -> list[Patch]:
    red, green, blue = (channel / 255 * STRONGEST_TINT for channel in TINT)
    return [
        Patch(facecolor="white", edgecolor="black", label="kept: as it is"),
        Patch(facecolor=(red, green, blue), label="dropped here: the brighter, the more of the fused token"),
        Patch(facecolor="black", label="dropped before"),
    ]
