"""The parts that persons and vehicles consist of, as polygons in the unit square (x right, y down)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["person", "vehicle"]
Points = NDArray[np.float64]
Shape = tuple[int, Points]
"""Label of the part and its corners `(corners, 2)`; drawn in order, later ones cover earlier ones."""

NUM_PARTS = 6
"""Number of parts whose colour, reflectance and temperature define the identity: labels 1 to 6."""
WARM, COLD = NUM_PARTS + 1, NUM_PARTS + 2
"""Labels of what all objects share: skin and lamps, glass and tyres."""

PART_NAMES: dict[Kind, tuple[str, ...]] = {
    "person": ("hat", "upper body", "sleeves", "legs", "shoes", "bag"),
    "vehicle": ("bonnet", "door panel", "rear panel", "roof", "hub", "sill"),
}
PART_AREAS: dict[Kind, tuple[float, ...]] = {
    "person": (0.08, 0.36, 0.14, 0.28, 0.05, 0.09),
    "vehicle": (0.18, 0.24, 0.24, 0.18, 0.06, 0.10),
}
"""Rough share of each part in the visible object, so that two looks differ visibly."""


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _disc(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    angle = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], axis=1)


def _polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners)


def _person_legs(build: int) -> list[Shape]:
    shoes = [(5, _box(0.27, 0.93, 0.47, 0.99)), (5, _box(0.53, 0.93, 0.73, 0.99))]
    if build == 1:  # a skirt above bare legs
        bare = [(WARM, _box(0.34, 0.74, 0.44, 0.94)), (WARM, _box(0.56, 0.74, 0.66, 0.94))]
        return [*bare, *shoes, (4, _polygon((0.32, 0.52), (0.68, 0.52), (0.80, 0.80), (0.20, 0.80)))]
    left = _polygon((0.30, 0.53), (0.50, 0.53), (0.46, 0.94), (0.30, 0.94))
    right = _polygon((0.50, 0.53), (0.70, 0.53), (0.70, 0.94), (0.54, 0.94))
    return [(4, left), (4, right), *shoes]


def _person(build: int) -> list[Shape]:
    """A person seen from the front; builds: trousers and shoulder bag, skirt and handbag, coat and backpack."""
    torso_end = 0.66 if build == 2 else 0.55
    torso = _polygon((0.25, 0.20), (0.75, 0.20), (0.72, torso_end), (0.28, torso_end))
    arms = [
        (3, _polygon((0.24, 0.20), (0.30, 0.24), (0.24, 0.50), (0.10, 0.50))),
        (3, _polygon((0.76, 0.20), (0.70, 0.24), (0.76, 0.50), (0.90, 0.50))),
        (WARM, _disc(0.16, 0.53, 0.06, 0.03)),
        (WARM, _disc(0.84, 0.53, 0.06, 0.03)),
    ]
    head = [
        (WARM, _disc(0.50, 0.12, 0.13, 0.075)),
        (6 if build == 2 else WARM, _box(0.45, 0.17, 0.55, 0.21)),
        (1, _polygon((0.33, 0.10), (0.36, 0.03), (0.64, 0.03), (0.67, 0.10))),
    ]
    bags = [
        [
            (6, _box(0.62, 0.38, 0.90, 0.54)),
            (6, _polygon((0.34, 0.20), (0.40, 0.20), (0.72, 0.40), (0.66, 0.42))),
        ],
        [(6, _box(0.74, 0.54, 1.00, 0.68))],
        [(6, _box(0.30, 0.20, 0.37, 0.46)), (6, _box(0.63, 0.20, 0.70, 0.46))],
    ]
    return [*_person_legs(build), (2, torso), *arms, *head, *bags[build]]


def _wheels(centres: Sequence[float]) -> list[Shape]:
    tyres = [(COLD, _disc(x, 0.83, 0.085, 0.15)) for x in centres]
    return tyres + [(5, _disc(x, 0.83, 0.05, 0.09)) for x in centres]


def _vehicle(build: int) -> list[Shape]:
    """A vehicle seen from its side, nose to the right; builds: saloon, van, pick-up truck."""
    cabin_left, cabin_right = ((0.22, 0.70), (0.05, 0.80), (0.45, 0.76))[build]
    top, rear_top = ((0.14, 0.45), (0.06, 0.45), (0.14, 0.36))[build]
    cabin = _polygon((cabin_left, 0.46), (cabin_left + 0.06, top), (cabin_right - 0.10, top), (cabin_right, 0.46))
    glass_top, middle = top + 0.13, (cabin_left + cabin_right) / 2
    glass = [
        (COLD, _polygon((cabin_left + 0.06, 0.44), (cabin_left + 0.09, glass_top), (middle - 0.02, glass_top),
                        (middle - 0.02, 0.44))),
        (COLD, _polygon((middle + 0.02, 0.44), (middle + 0.02, glass_top), (cabin_right - 0.11, glass_top),
                        (cabin_right - 0.05, 0.44))),
    ]  # fmt: skip
    body = [
        (4, cabin),
        (3, _box(0.03, rear_top, 0.34, 0.74)),
        (2, _box(0.34, 0.45, 0.66, 0.74)),
        (1, _polygon((0.66, 0.45), (0.93, 0.50), (0.97, 0.74), (0.66, 0.74))),
        (6, _box(0.03, 0.73, 0.97, 0.84)),
    ]
    lamps = [(WARM, _box(0.92, 0.54, 0.97, 0.64)), (WARM, _box(0.03, 0.50, 0.07, 0.62))]
    return [*body, *glass, *lamps, *_wheels((0.20, 0.78))]


def object_shapes(kind: Kind, build: int) -> list[Shape]:
    """Shapes of one build (0 to 2), back to front."""
    return _person(build) if kind == "person" else _vehicle(build)


NUM_BUILDS = 3
