"""Blinding: training items of which some modalities show almost nothing, and nothing says so.

Smoke, fog, darkness or a covered lens leave an image that is there. Modality dropout (`trireid.data.dropping`) tells
the model what is missing; here it has to see for itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trireid.data.dropping import drop_modalities
from trireid.data.randomness import uniform_draws

CONTRAST = 0.15
"""What is left of the contrast of a blinded image is drawn from [0, CONTRAST]."""
NOISE = 0.04
"""Standard deviation of the sensor's noise in a blinded image, in units of the pixel range."""
_WHICH, _HOW = 0x626C696E6477, 0x626C696E6468
"""Separate these draws from each other and from those of augmentation and dropout, which use the same seed."""


def blind(images: Tensor, seed: Tensor, present: Tensor, probability: float, *, noise: Tensor) -> Tensor:
    """Blind some modalities of some items; which and how depends on each item's seed alone.

    With the given probability an item keeps sight in a random proper and non-empty subset of the modalities that it
    has. The others become a grey of random level, with little of the image left in it, and noise.

    Args:
        images: `(B, M, 3, H, W)` in [0, 1].
        seed: `(B,)` int64; present: `(B, M)` bool.
        probability: in [0, 1].
        noise: `(length,)` standard normal numbers, longer than M x H x W: the noise starts at a random place of it.

    Returns:
        `(B, M, 3, H, W)` in [0, 1]; an image that keeps its sight is not changed.

    Raises:
        InputError: the probability is out of range.
    """
    batch, modalities, _, height, width = images.shape
    blinded = present & ~drop_modalities(present, seed ^ _WHICH, probability)  # (B, M)
    draws = uniform_draws(seed ^ _HOW, 2 * modalities + 1)
    level, left = draws[:, :-1].view(batch, modalities, 2, 1, 1, 1).unbind(2)  # (B, M, 1, 1, 1)
    length = modalities * height * width
    start = (draws[:, -1] * (len(noise) - length)).long()
    grain = noise.unfold(0, length, 1)[start].view(batch, modalities, 1, height, width)
    mean = images.mean(dim=(-2, -1), keepdim=True)
    veiled = (level + CONTRAST * left * (images - mean) + NOISE * grain).clamp(0.0, 1.0)
    return torch.where(blinded[:, :, None, None, None], veiled, images)
