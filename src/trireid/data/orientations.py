"""Overhead images: each of the eight rotations and mirror images of a place is trained as a place of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trireid.data.records import Record

NUM_ORIENTATIONS = 8


def orient(image: Tensor, orientation: int) -> Tensor:
    """Rotate `(..., h, w)` anticlockwise by `orientation % 4` quarter turns; 4 to 7 mirror left and right first.

    These are the eight symmetries of the square; orientation 0 returns the image unchanged.
    """
    if orientation == 0:
        return image  # torch would copy it
    mirrored = image.flip(-1) if orientation >= NUM_ORIENTATIONS // 2 else image
    return torch.rot90(mirrored, orientation % 4, dims=(-2, -1))


def expand_orientations(records: Sequence[Record]) -> tuple[Record, ...]:
    """Repeat every record in all eight orientations, each with an identity of its own such as `000123/o3`.

    An overhead image has no upright direction, so a rotated place is as plausible as the place itself, but a
    different place: training gets eight times the identities. (Flips as augmentation would teach the model to ignore
    rotations.) Orientation 0 keeps name and identity.
    """
    rotated = (
        replace(
            record,
            name=f"{record.name}/o{orientation}",
            identity=f"{record.identity}/o{orientation}",
            orientation=orientation,
        )
        for orientation in range(1, NUM_ORIENTATIONS)
        for record in records
    )
    return (*records, *rotated)
