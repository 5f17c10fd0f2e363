"""How the rows of a position table lie in the image: from the file, the caller or its publication, or refused.

A table of 128 rows may be 16 x 8 patches or 8 x 16: taken the wrong way round it loads and is scrambled. So no grid is
guessed from a count here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import timm
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from trireid.errors import CheckpointError

Grid = tuple[int, int]
"""(rows, columns) of patches."""

GRID_KEY = "position_grid"
"""In the metadata of every file of weights that is written here: the grid of its position table, as `16x8`."""

_SETTING = "model.backbone.pretrained_image_size"
_USUAL_SIZES = ((256, 128), (128, 256), (256, 256), (384, 128), (384, 192), (224, 224))
_WIDEST = 4  # of the grids that a message lists: how much longer one side is than the other


def grid_text(grid: Grid) -> str:
    """The grid as it stands in metadata."""
    return f"{grid[0]}x{grid[1]}"


def recorded_grid(metadata: Mapping[str, str], *, patch_size: Grid) -> Grid | None:
    """The grid that a file of ours names in its metadata, None where it names none.

    Args:
        metadata: of the file. Checkpoints of version 0.1.0 say their image size among their settings alone.
        patch_size: (height, width) in pixels of its patch filters.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", metadata.get(GRID_KEY, ""))
    if found:
        return int(found[1]), int(found[2])
    try:
        height, width = json.loads(metadata["config"])["data"]["image_size"]
        return int(height) // patch_size[0], int(width) // patch_size[1]
    except (LookupError, ValueError, TypeError, RecursionError, OverflowError):
        return None


def published_grid(timm_name: str, *, patch_size: Grid) -> Grid | None:
    """The grid of the weights that timm publishes under a name."""
    config = timm.get_pretrained_cfg(timm_name)
    if config is None or not config.input_size:
        return None
    return config.input_size[-2] // patch_size[0], config.input_size[-1] // patch_size[1]


def table_grid(
    num_patches: int,
    *,
    source: Path,
    patch_size: Grid,
    recorded: Grid | None = None,
    given: Grid | None = None,
    published: Grid | None = None,
    is_square: bool = False,
    setting: str = _SETTING,
) -> Grid:
    """The grid of a position table.

    Args:
        num_patches: rows of the table, without those of class and register tokens.
        source: the file, for messages.
        patch_size: (height, width) in pixels of a patch of the file.
        recorded: what the file says itself.
        given: (height, width) in pixels of the images it was made for, as the caller says.
        published: grid of the published weights of that name.
        is_square: the file is of a source whose tables are all square: OpenAI's CLIP, timm's own weights.
        setting: what the caller sets `given` with.

    Raises:
        CheckpointError: the grid is not known, or what is said contradicts the file.
    """
    named = None if given is None else (given[0] // patch_size[0], given[1] // patch_size[1])
    if named is not None and math.prod(named) != num_patches:
        raise CheckpointError(_refused_size(num_patches, source, patch_size, given or (0, 0), named, setting))
    if recorded is not None and math.prod(recorded) != num_patches:
        raise CheckpointError(
            f"weight file {source} names a position table of {recorded[0]} x {recorded[1]} patches and holds one of "
            f"{num_patches}: it is damaged; make it again, or give another"
        )
    if recorded is not None and named is not None and recorded != named:
        raise CheckpointError(
            f"{setting} says {named[0]} x {named[1]} patches, weight file {source} says that its table is "
            f"{recorded[0]} x {recorded[1]}: leave the setting out"
        )
    side = math.isqrt(num_patches)
    square = (side, side) if is_square and side * side == num_patches else None
    fitting = published if published is not None and math.prod(published) == num_patches else None
    known = recorded or named or fitting or square
    if known is None:
        raise CheckpointError(_unknown_grid(num_patches, source, patch_size, setting))
    return known


def resize_table(table: Tensor, source: Grid, target: Grid, *, interpolation: str, num_others: int = 1) -> Tensor:
    """Position table `(1, P + N, D)` of one grid for another; `bicubic` is antialiased, `bilinear` is not.

    Args:
        table: the rows of the P tokens before the patches come first, and stay.
        source, target: grids.
        interpolation: `bicubic` or `bilinear`.
        num_others: P.
    """
    if source == target:
        return table
    resized: Tensor = resample_abs_pos_embed(
        table,
        new_size=list(target),
        old_size=list(source),
        num_prefix_tokens=num_others,
        interpolation=interpolation,
        antialias=interpolation == "bicubic",
    )
    return resized


def _unknown_grid(num_patches: int, source: Path, patch_size: Grid, setting: str) -> str:
    sides = [side for side in range(1, num_patches + 1) if num_patches % side == 0]
    grids = [(rows, num_patches // rows) for rows in sides if rows**2 <= _WIDEST * num_patches <= (_WIDEST * rows) ** 2]
    shown = ", ".join(f"{rows} x {columns}" for rows, columns in grids[:5]) or "no usual grid"
    example = max(grids, default=(16, 8), key=lambda grid: (grid[0] >= grid[1], -abs(grid[0] - 2 * grid[1])))
    size = f"[{example[0] * patch_size[0]}, {example[1] * patch_size[1]}]"
    overlaps = overlapping_patches(num_patches, patch_size=patch_size, sizes=_USUAL_SIZES, least=patch_size[0] // 2)
    hint = f"; if it is of overlapping patches ({overlaps}), it cannot be used" if overlaps else ""
    return (
        f"weight file {source} has a position table of {num_patches} patches and does not say how they lie ({shown}): "
        f"give {setting} as the (height, width) of the images it was made for, such as {size}{hint}"
    )


def _refused_size(
    num_patches: int, source: Path, patch_size: Grid, given: Grid, named: Grid, setting: str
) -> str:  # fmt: skip
    text = (
        f"weight file {source} has a position table of {num_patches} patches, {setting} ({given[0]} x {given[1]}) has "
        f"{named[0]} x {named[1]}"
    )
    overlaps = overlapping_patches(num_patches, patch_size=patch_size, sizes=(given,))
    if overlaps:
        return f"{text}: the table is of overlapping patches ({overlaps}), which are not supported"
    return f"{text}: give the (height, width) of the images it was made for"


def overlapping_patches(num_patches: int, *, patch_size: Grid, sizes: tuple[Grid, ...], least: int = 1) -> str | None:
    """How patches must overlap to give this number for images of one of these sizes; None if they need not.

    Args:
        num_patches: rows of a position table.
        patch_size: (height, width) in pixels.
        sizes: (height, width) of images in pixels.
        least: pixels from one patch to the next, at least.
    """
    if any(num_patches == size[0] // patch_size[0] * (size[1] // patch_size[1]) for size in sizes):
        return None
    for size in sizes:
        for step in range(max(1, least), patch_size[0]):
            rows, columns = ((side - patch) // step + 1 for side, patch in zip(size, patch_size, strict=True))
            if rows > 0 and columns > 0 and rows * columns == num_patches:
                return f"{rows} x {columns}, one every {step} pixels of {size[0]} x {size[1]}"
    return None
