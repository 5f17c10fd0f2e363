"""How hard a synthetic set is: every strength in one table, `EASY` and `HARD`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DifficultyName = Literal["easy", "hard"]


@dataclass(frozen=True)
class Difficulty:
    """Strengths of everything that hides an identity. Lengths are shares of the image, values lie in [0, 1].

    Attributes:
        shared_pairs: whether identities share their look also in pairs of spectra (see identities.look_codes).
        cast: colour cast of a camera, as a change of each channel's gain.
        gain: how much brighter or darker a camera sees (RGB and NIR).
        thermal_offset: shift of a camera's thermal reading.
        view_scale, view_shear, view_shift: how far a camera's view differs.
        jitter_scale, jitter_shift: the same, from image to image of one camera.
        clutter: smallest and largest number of distractor parts behind the object.
        tint: how far the mean background of a camera differs from grey.
        background: contrast of the background.
        texture: standard deviation of the sensor noise that every image has.
        nuisance_probability: share of the triplets in which one modality is degraded.
        nuisance_strength: smallest and largest strength, in [0, 1].
    """

    name: DifficultyName
    shared_pairs: bool
    cast: float
    gain: float
    thermal_offset: float
    view_scale: float
    view_shear: float
    view_shift: float
    jitter_scale: float
    jitter_shift: float
    clutter: tuple[int, int]
    tint: float
    background: float
    texture: float
    nuisance_probability: float
    nuisance_strength: tuple[float, float]


EASY = Difficulty(
    name="easy",
    shared_pairs=False,
    cast=0.2,
    gain=0.2,
    thermal_offset=0.07,
    view_scale=0.07,
    view_shear=0.05,
    view_shift=0.03,
    jitter_scale=0.03,
    jitter_shift=0.015,
    clutter=(4, 7),
    tint=0.4,
    background=0.7,
    texture=0.02,
    nuisance_probability=0.15,
    nuisance_strength=(0.3, 0.6),
)

HARD = Difficulty(
    name="hard",
    shared_pairs=True,
    cast=0.25,
    gain=0.25,
    thermal_offset=0.08,
    view_scale=0.08,
    view_shear=0.06,
    view_shift=0.03,
    jitter_scale=0.05,
    jitter_shift=0.025,
    clutter=(5, 9),
    tint=0.5,
    background=0.8,
    texture=0.04,
    nuisance_probability=0.5,
    nuisance_strength=(0.5, 1.0),
)

DIFFICULTIES: dict[str, Difficulty] = {"easy": EASY, "hard": HARD}
