"""Degradations of one modality of a triplet: darkness, glare, thermal crossover, noise, occlusion.

Every function takes the signal of one modality, `(h, w, c)` float32 in [0, 1] (c = 3 for RGB, 1 for NIR and for
temperature before its pseudo-colours), and returns the degraded one. Strength lies in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trireid.data.synthetic.difficulty import Difficulty

Signal = NDArray[np.float32]
Strike = Callable[[Signal, float, np.random.Generator], Signal]
RGB, NIR, TIR = range(3)


def darkness(signal: Signal, strength: float, random: np.random.Generator) -> Signal:
    """Little light: the signal falls, and with it its ratio to the noise."""
    grain = random.standard_normal(signal.shape, dtype=np.float32)
    degraded: Signal = signal * np.float32(1.0 - 0.9 * strength) + grain * np.float32(0.03 * strength)
    return degraded


def glare(signal: Signal, strength: float, random: np.random.Generator) -> Signal:
    """A lamp or the sun in the image: a bright blob, and a veil over everything."""
    centre = random.uniform(0.1, 0.9, size=2)
    width = random.uniform(0.2, 0.35, size=2)
    sides = [(np.arange(side) + 0.5) / side for side in signal.shape[:2]]
    down, across = (np.exp(-np.square((sides[axis] - centre[axis]) / width[axis])) for axis in range(2))
    blob: Signal = np.outer(down, across).astype(np.float32)[:, :, None]
    return signal * np.float32(1.0 - 0.4 * strength) + np.float32(strength) * (0.25 + np.float32(1.2) * blob)


def crossover(signal: Signal, strength: float, random: np.random.Generator) -> Signal:
    """Object and surroundings are equally warm: the thermal contrast collapses."""
    level = np.float32(random.uniform(0.35, 0.65))
    return level + (signal - level) * np.float32(1.0 - 0.9 * strength)


def noise(signal: Signal, strength: float, random: np.random.Generator) -> Signal:
    """A noisy sensor."""
    return signal + np.float32(0.25 * strength) * random.standard_normal(signal.shape, dtype=np.float32)


def occlusion(signal: Signal, strength: float, random: np.random.Generator) -> Signal:
    """Something opaque in this spectrum alone (smoke for the eye, glass for heat) hides a part of the image."""
    height, width = signal.shape[:2]
    share = np.sqrt(0.1 + 0.3 * strength)
    top, left = random.uniform(0.0, 1.0 - share, size=2)
    rows = slice(int(top * height), int((top + share) * height))
    columns = slice(int(left * width), int((left + share) * width))
    hidden = signal.copy()
    hidden[rows, columns] = random.uniform(0.1, 0.9, size=(int(signal.shape[2]),)).astype(np.float32)
    return hidden


STRIKES: tuple[tuple[Strike, int], ...] = (
    (darkness, RGB),
    (glare, RGB),
    (glare, NIR),
    (crossover, TIR),
    (noise, RGB),
    (noise, NIR),
    (noise, TIR),
    (occlusion, RGB),
    (occlusion, NIR),
    (occlusion, TIR),
)
"""The degradations and their modalities, all equally likely."""


@dataclass(frozen=True)
class Nuisance:
    """One degradation of one modality (an index of `trireid.types.MODALITIES`)."""

    strike: Strike
    modality: int
    strength: float

    def __call__(self, signal: Signal, random: np.random.Generator) -> Signal:
        """The degraded signal."""
        return self.strike(signal, self.strength, random)


def draw_nuisance(difficulty: Difficulty, random: np.random.Generator) -> Nuisance | None:
    """The nuisance of one triplet, or None."""
    if random.random() >= difficulty.nuisance_probability:
        return None
    strike, modality = STRIKES[random.integers(len(STRIKES))]
    return Nuisance(strike, modality, float(random.uniform(*difficulty.nuisance_strength)))
