"""Overhead images: the eight turns and mirror images of a place are places of their own to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trireid.data.records import Record

NUM_ORIENTATIONS = 8


def orient(image: Tensor, orientation: int) -> Tensor:
    """Turn `(..., h, w)` by `orientation % 4` quarter turns anticlockwise, from 4 on after mirroring left and right.

    These are all symmetries of the square: every one of the eight gives other pixels, and 0 gives the image itself.
    """
    mirrored = image.flip(-1) if orientation >= NUM_ORIENTATIONS // 2 else image
    return torch.rot90(mirrored, orientation % 4, dims=(-2, -1))


def expand_orientations(records: Sequence[Record]) -> tuple[Record, ...]:
    """Every record in all eight orientations, each orientation of an identity an identity of its own: `000123/o3`.

    Seen from above nothing says which way is up, so a turned place is as plausible as the place itself, and yet
    another one: eight times the identities, where flips as augmentation would teach that turns do not matter.
    Orientation 0 keeps name and identity.
    """
    turned = (
        replace(
            record,
            name=f"{record.name}/o{orientation}",
            identity=f"{record.identity}/o{orientation}",
            orientation=orientation,
        )
        for orientation in range(1, NUM_ORIENTATIONS)
        for record in records
    )
    return (*records, *turned)
