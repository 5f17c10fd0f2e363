"""What a batch selects as plain pictures without letters, made in milliseconds: for the curves of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from trireid.models.selection import fused_weights
from trireid.types import ReIDOutput
from trireid.visualize.patches import Pixels, finite_limits, heat_image, patch_states, state_image


def selection_pictures(output: ReIDOutput, images: Tensor, names: Sequence[str]) -> dict[str, Pixels]:
    """Image, scores and kept patches from top to bottom, the modalities side by side.

    Args:
        output: of the model for these images.
        images: `(B, M, 3, H, W)` uint8.
        names: B.

    Returns:
        `(3 * H, M * W, 3)` by `selection/STAGE/NAME`; empty where nothing is selected.

    Raises:
        InputError: a grid does not divide the images.
    """
    pixels = images.permute(0, 1, 3, 4, 2).cpu().numpy()  # (B, M, H, W, 3)
    present = output.present.cpu()
    drawn = {}
    for stage, selection in output.selection.items():
        scores, mask, states = selection.scores.cpu(), selection.mask.cpu(), patch_states(selection).cpu()
        for item, name in enumerate(names):
            limits = finite_limits(scores[item][present[item]])
            columns = []
            for row, image in enumerate(pixels[item]):
                heat = heat_image(image, scores[item, row], grid=selection.grid, limits=limits)
                weights = fused_weights(scores[item, row], mask[item, row])
                kept = state_image(image, states[item, row], weights, grid=selection.grid)
                columns.append(np.concatenate([image, heat, kept]))
            drawn[f"selection/{stage}/{name}"] = np.concatenate(columns, axis=1)
    return drawn
