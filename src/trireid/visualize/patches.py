"""Which patches of a triplet were kept: the images as they are, and below them the choice drawn over them."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from trireid.data.records import Record
from trireid.errors import InputError
from trireid.types import MODALITIES, Selection
from trireid.visualize.triplets import spectrum_image

DIMMED = 0.2
"""Share of its own brightness that a dropped patch keeps."""


def kept_pixels(mask: Tensor, *, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Which pixels lie in a kept patch: `(..., N)` bool -> `(..., H, W)` bool.

    Args:
        mask: true where a patch was kept, patches row by row.
        grid: (rows, columns) of patches, rows * columns == N.
        size: (height, width) in pixels, multiples of rows and columns.

    Raises:
        InputError: the grid does not hold N patches, or does not divide the size.
    """
    (rows, columns), (height, width) = grid, size
    if rows * columns != mask.shape[-1]:
        raise InputError(f"a grid of {rows} x {columns} does not hold {mask.shape[-1]} patches; give the selection's")
    if height % rows or width % columns:
        raise InputError(
            f"{height} x {width} pixels do not divide into {rows} x {columns} patches; give multiples of the grid"
        )
    patches = mask.unflatten(-1, grid)  # (..., rows, columns)
    pixels: Tensor = patches.repeat_interleave(height // rows, dim=-2).repeat_interleave(width // columns, dim=-1)
    return pixels


def dim_dropped(pixels: NDArray[np.uint8], kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """`(H, W, 3)` pixels with those outside `kept` `(H, W)` darkened."""
    dimmed = (pixels * DIMMED).round().astype(np.uint8)
    return np.where(kept[..., None], pixels, dimmed)


def patches_figure(
    record: Record, selection: Selection, *, size: tuple[int, int], item: int = 0, title: str = ""
) -> Figure:
    """Draw a triplet (above) and its kept patches (below), one column a modality.

    Args:
        record: its images are read; absent ones become a hatched box and have no kept patches.
        selection: of a batch that holds this triplet, for example `out.selection["sdtps"]`.
        size: (height, width) that the model saw, so that patches and pixels agree.
        item: position of the triplet in the batch.
        title: written above.

    Returns:
        A figure of 2 rows and M columns; nothing is saved.

    Raises:
        InputError: the selection's grid does not divide the size.
    """
    mask = selection.mask[item].cpu()  # (M, N)
    kept = kept_pixels(mask, grid=selection.grid, size=size).numpy()  # (M, H, W)
    figure = Figure(figsize=_inches(size, columns=len(MODALITIES), rows=2), layout="constrained", dpi=110)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(2, len(MODALITIES), squeeze=False)
    for column, (name, source) in enumerate(zip(MODALITIES, record.images, strict=True)):
        pixels = np.asarray(spectrum_image(source, size))
        chosen = pixels if source is None else dim_dropped(pixels, kept[column])
        for axis, image in zip(axes[:, column], (pixels, chosen), strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0, column].set_title(name, fontsize=11)
        if source is not None:
            axes[1, column].set_xlabel(f"{int(mask[column].sum())} of {mask.shape[1]} kept", fontsize=8)
    return figure


def _inches(size: tuple[int, int], *, columns: int, rows: int) -> tuple[float, float]:
    """(width, height) of a figure whose images have a longer side of two inches, with room for the text."""
    scale = 2.0 / max(size)
    return columns * scale * size[1] + 0.4, rows * scale * size[0] + 0.8
