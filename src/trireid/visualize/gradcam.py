"""Grad-CAM: which places of each modality contribute to a feature, or to its similarity with another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from trireid.data.records import Record
from trireid.errors import InputError
from trireid.models.reid import ReIDModel
from trireid.visualize.patches import map_grid
from trireid.visualize.triplets import spectrum_image

HEAT_COLORS = "inferno"


class _OneTriplet(nn.Module):
    """The model as Grad-CAM wants it: the modalities of one triplet are the batch, one score comes out."""

    def __init__(self, model: ReIDModel, *, present: Tensor, camera: Tensor | None, score: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model, self.present, self.camera, self.score = model, present, camera, score

    def forward(self, images: Tensor) -> Tensor:
        """Score `(1,)` of images `(M, 3, H, W)`."""
        embedding = self.model(images[None], present=self.present, camera=self.camera).embedding
        return self.score(embedding[0])[None]


def grad_cam(
    model: ReIDModel,
    images: Tensor,
    *,
    present: Tensor | None = None,
    camera: Tensor | None = None,
    reference: Tensor | None = None,
    after_block: int | None = None,
) -> NDArray[np.float32]:
    """Heat of one triplet, `(M, H, W)` in [0, 1], each modality scaled by itself; 0 where it is absent.

    Args:
        model: in evaluation mode; its tokens after a block of the ViT are weighed, in the grid that the images have.
        images: `(1, M, 3, H, W)`, normalised.
        present: `(1, M)` bool; None: all present.
        camera: `(1,)` int64; None: unknown.
        reference: `(F,)`, an embedding (pattern 3) of another triplet: explains the cosine with it. None explains the
            length of the triplet's own embedding.
        after_block: block whose output is weighed, from 1; None is the last but one, since after the last a CLS token
            sees no patch any more.

    Raises:
        InputError: the package grad-cam is not installed, a block that is not there, or another number of items.
    """
    blocks = model.backbone.vit.blocks
    block = max(len(blocks) - 1, 1) if after_block is None else after_block
    if not 1 <= block <= len(blocks):
        raise InputError(f"after_block is {block}; the backbone has blocks 1 to {len(blocks)}")
    if len(images) != 1:
        raise InputError(f"Grad-CAM explains one triplet at a time, given {len(images)}")
    try:
        from pytorch_grad_cam import GradCAM  # optional, and takes seconds to import
    except ImportError as error:
        raise InputError(f"Grad-CAM needs the package grad-cam ({error}): pip install 'trireid[gradcam]'") from error
    shown = images.new_ones(1, images.shape[1], dtype=torch.bool) if present is None else present
    with torch.no_grad():
        selection = model(images, present=shown, camera=camera).selection
    before = [each for name, each in selection.items() if name.startswith("block") and int(name[5:]) < block]
    grid = model.backbone.grid
    positions = before[-1].indices[0] if before else torch.arange(grid[0] * grid[1]).expand(images.shape[1], -1)
    rows = shown[0].nonzero()[:, 0]
    wrapped = _OneTriplet(model, present=shown, camera=camera, score=_score(reference))
    with GradCAM(
        model=wrapped,
        target_layers=[blocks[block - 1]],
        reshape_transform=lambda tokens: in_grid(
            tokens, positions, rows=rows, grid=grid, num_prefix=model.backbone.vit.num_prefix_tokens
        ),
    ) as cam:
        heat: NDArray[np.float32] = cam(input_tensor=images[0], targets=[lambda score: score])
    heat[~shown[0].cpu().numpy()] = 0.0
    return heat


def in_grid(tokens: Tensor, positions: Tensor, *, rows: Tensor, grid: tuple[int, int], num_prefix: int = 1) -> Tensor:
    """Tokens `(R, P + N (+ 1), D)` of present modalities as maps `(M, D, rows, columns)`, 0 where dropped or absent.

    Args:
        tokens: the class and register tokens first, the fused token last where there is one.
        positions: `(M, N)` places of the patches in the grid.
        rows: `(R,)` int64, which modality each row of tokens is.
        grid: (rows, columns) of the patches.
        num_prefix: P, tokens before the patches.
    """
    num_patches = positions.shape[1]
    maps = tokens.new_zeros(len(positions), grid[0] * grid[1], tokens.shape[2])
    place = positions[rows].unsqueeze(-1).expand(-1, -1, tokens.shape[2])  # (R, N, D)
    maps[rows] = maps[rows].scatter(1, place, tokens[:, num_prefix : num_prefix + num_patches])
    spread: Tensor = maps.transpose(1, 2).unflatten(2, grid)
    return spread


def _score(reference: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What is explained, of an embedding `(F,)`."""
    if reference is None:
        return lambda embedding: embedding.norm()
    return lambda embedding: nn.functional.cosine_similarity(embedding, reference.to(embedding), dim=0)


def grad_cam_figure(record: Record, heat: NDArray[np.float32], *, title: str = "") -> Figure:
    """Draw a triplet and the heat over it.

    Args:
        record: its images are read.
        heat: `(M, H, W)` in [0, 1], of `grad_cam`.
        title: written above.

    Returns:
        A figure of the images and their heat; nothing is saved.
    """
    size = (heat.shape[1], heat.shape[2])
    figure, axes = map_grid(["image", "Grad-CAM"], size=size, title=title)
    for row, source in enumerate(record.images):
        pixels = np.asarray(spectrum_image(source, size))
        axes[row][0].imshow(pixels, interpolation="nearest")
        axes[row][1].imshow(pixels.mean(axis=2) if source is not None else pixels, cmap="gray", vmin=0, vmax=255)
        if source is not None:
            axes[row][1].imshow(heat[row], cmap=HEAT_COLORS, alpha=0.6, vmin=0.0, vmax=1.0)
            axes[row][1].set_xlabel("" if heat[row].any() else "nothing speaks for it", fontsize=7)
        for axis in axes[row]:
            axis.set_xticks([])
            axis.set_yticks([])
    return figure
