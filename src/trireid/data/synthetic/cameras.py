"""Effects of a camera on all its images: its viewpoint (view), and its colours, brightness and temperatures (light)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trireid.data.randomness import numpy_generator
from trireid.data.synthetic.difficulty import Difficulty

Floats = NDArray[np.float32]
Affine = NDArray[np.float64]
GOLDEN = 0.6180339887498949
"""Hue step from camera to camera, as a share of the circle: it keeps the casts of the first cameras far apart."""


@dataclass(frozen=True)
class Light:
    """Gain `(3,)` of the RGB channels, gain of NIR, offset of the thermal reading, tint `(3, 3)` of the background."""

    rgb_gain: Floats
    nir_gain: float
    thermal_offset: float
    background: Floats


def camera_light(number: int, *, difficulty: Difficulty, seed: int) -> Light:
    """Light of one camera (or scene). Neighbouring numbers alternate between bright and dark, warm and cold."""
    random = numpy_generator(seed, "light", number)
    hue = 2.0 * np.pi * (GOLDEN * number + numpy_generator(seed, "hue").random() + np.arange(3) / 3.0)
    sign = 1.0 if number % 2 else -1.0
    brightness, nir, thermal = sign * random.uniform(0.6, 1.0, size=3) * (1.0, -1.0, 1.0)
    gain = (1.0 + difficulty.cast * np.cos(hue)) * (1.0 + 0.5 * difficulty.gain * brightness)
    return Light(
        rgb_gain=gain.astype(np.float32),
        nir_gain=1.0 + difficulty.gain * float(nir),
        thermal_offset=difficulty.thermal_offset * float(thermal),
        background=(0.5 + difficulty.tint * random.uniform(-0.5, 0.5, size=(3, 3))).astype(np.float32),
    )


def _affine(scale: tuple[float, float], shear: float, shift: tuple[float, float], mirror: bool) -> Affine:
    """`(2, 3)` map of the unit square onto itself about its centre."""
    flip = -1.0 if mirror else 1.0
    linear = np.array([[flip * scale[0], shear], [0.0, scale[1]]])
    offset = 0.5 + np.array(shift) - linear @ np.array([0.5, 0.5])
    return np.concatenate([linear, offset[:, None]], axis=1)


def camera_view(number: int, *, difficulty: Difficulty, seed: int) -> Affine:
    """View of one camera. Cameras of neighbouring numbers see mirrored sides and lean to opposite sides."""
    random = numpy_generator(seed, "view", number)
    sign = 1.0 if number % 2 else -1.0
    size, narrow, lean, right, down = random.uniform(0.5, 1.0, size=5) * sign
    scale = 0.86 * (1.0 + difficulty.view_scale * size)
    return _affine(
        scale=(scale * (1.0 - 0.5 * difficulty.view_scale * narrow), scale),
        shear=difficulty.view_shear * lean,
        shift=(difficulty.view_shift * right, difficulty.view_shift * down),
        mirror=number % 2 == 0,
    )


def jittered(view: Affine, *, difficulty: Difficulty, random: np.random.Generator) -> Affine:
    """The view of one image: the camera's, moved and scaled a little."""
    change = random.uniform(-1.0, 1.0, size=4)
    scale = 1.0 + difficulty.jitter_scale * change[:2]
    shift = difficulty.jitter_shift * change[2:]
    extra = np.concatenate([_affine((scale[0], scale[1]), 0.0, (shift[0], shift[1]), False), [[0.0, 0.0, 1.0]]])
    moved: Affine = extra[:2] @ np.concatenate([view, [[0.0, 0.0, 1.0]]])
    return moved
