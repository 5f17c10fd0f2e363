"""Render one triplet: the same scene in the three spectra, aligned to the pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trireid.data.randomness import numpy_generator
from trireid.data.synthetic.cameras import Floats, Light, camera_light, camera_view, jittered
from trireid.data.synthetic.difficulty import Difficulty
from trireid.data.synthetic.identities import NIR_PALETTE, RGB_PALETTE, TIR_PALETTE, Appearance
from trireid.data.synthetic.nuisances import NIR, RGB, TIR, Nuisance, Signal, darkness, draw_nuisance
from trireid.data.synthetic.shapes import COLD, Kind, Points, Shape, object_shapes

Labels = NDArray[np.uint8]
Pixels = NDArray[np.uint8]

# Values that all objects share: skin or lamps, glass or tyres, in rgb, nir and tir.
_SHARED_RGB = {
    "person": ((0.80, 0.60, 0.48), (0.2, 0.2, 0.2)),
    "vehicle": ((0.95, 0.85, 0.55), (0.13, 0.16, 0.20)),
}
_SHARED_NIR = {"person": (0.75, 0.2), "vehicle": (0.95, 0.12)}
_SHARED_TIR = {"person": (0.97, 0.3), "vehicle": (0.72, 0.28)}

# Pseudo-colours from cold to hot: black, violet, crimson, orange, yellow, white.
_HEAT_COLOURS = np.array(
    [
        (4, 2, 20),
        (52, 12, 110),
        (130, 28, 122),
        (205, 52, 76),
        (246, 122, 22),
        (250, 205, 50),
        (255, 253, 220),
    ]
)
_HEAT_STOPS = np.linspace(0.0, 255.0, len(_HEAT_COLOURS))
HEAT_TABLE: Pixels = np.stack(
    [np.interp(np.arange(256), _HEAT_STOPS, _HEAT_COLOURS[:, channel]) for channel in range(3)], axis=1
).astype(np.uint8)
"""`(256, 3)` colour of each thermal reading."""

NIGHT_STRENGTH = 0.6
"""Darkness of the RGB image if the name marks it as taken at night."""


@dataclass(frozen=True)
class Shot:
    """One capture by the three sensors.

    Attributes:
        name: file name; with seed, identity and camera it decides everything random about the triplet.
        identity: as written in the name.
        view, light: number of the camera's place, and of its light (the scene, if the layout has scenes).
        night: whether RGB has little light (WMVeID863's flag).
    """

    name: str
    identity: str
    view: int
    light: int
    night: bool = False


def _clutter(number: int, random: np.random.Generator) -> list[Points]:
    """Distractor parts: rotated blocks anywhere in the image, each `(4, 2)` in the unit square."""
    centre = random.uniform(0.0, 1.0, size=(number, 1, 2))
    half = random.uniform(0.04, 0.2, size=(number, 1, 2))
    angle = random.uniform(-0.5, 0.5, size=(number, 1))
    corners = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])[None] * half  # (number, 4, 2)
    x, y = corners[..., 0], corners[..., 1]
    turned = np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=-1)
    return list(turned + centre)


def draw_labels(shapes: list[Shape], size: tuple[int, int]) -> Labels:
    """Label of every pixel `(h, w)`, 0 where nothing was drawn.

    Args:
        shapes: back to front, corners in the unit square.
        size: (height, width) in pixels.
    """
    image = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(image)
    pixels = np.array([size[1], size[0]])
    for label, points in shapes:
        draw.polygon([(float(x), float(y)) for x, y in points * pixels - 0.5], fill=label)
    return np.asarray(image)


def _background(size: tuple[int, int], tint: Floats, contrast: float, random: np.random.Generator) -> Signal:
    """A smooth random field about the camera's tint, `(h, w, c)`."""
    cells = random.uniform(-0.5, 0.5, size=(5, 4, 3)) * contrast + tint
    image = Image.fromarray((np.clip(cells, 0.0, 1.0) * 255.0).astype(np.uint8))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=np.float32) / 255.0


def _value_tables(
    appearance: Appearance, kind: Kind, num_distractors: int, random: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Value of each label in rgb `(labels, 3)`, nir and tir `(labels, 1)`; distractors use the parts' palettes."""
    palettes = (RGB_PALETTE, NIR_PALETTE[:, None], TIR_PALETTE[:, None])
    shared = (_SHARED_RGB[kind], _SHARED_NIR[kind], _SHARED_TIR[kind])
    tables = []
    for palette, own, parts in zip(palettes, shared, appearance.parts, strict=True):
        common = np.array(own, dtype=np.float32).reshape(2, -1)
        distractors = palette[random.integers(len(palette), size=num_distractors)]
        empty = np.zeros((1, palette.shape[1]), dtype=np.float32)
        tables.append(np.concatenate([empty, palette[list(parts)], common, distractors]))
    return tables[0], tables[1], tables[2]


def _shading(size: tuple[int, int], random: np.random.Generator) -> Signal:
    """Light that falls off across the image, `(h, w, 1)` about 1."""
    down, across = random.uniform(-0.15, 0.15, size=2)
    rows = np.linspace(-down, down, size[0], dtype=np.float32)[:, None]
    columns = np.linspace(-across, across, size[1], dtype=np.float32)[None]
    return (1.0 + rows + columns)[:, :, None]


def _scene(
    appearance: Appearance, shot: Shot, kind: Kind, size: tuple[int, int], difficulty: Difficulty, seed: int
) -> tuple[Labels, int, np.random.Generator]:
    """Label map of one shot, the number of its distractors and the generator for further draws."""
    random = numpy_generator(seed, "shot", shot.identity, shot.view, shot.light, shot.name)
    num_distractors = int(random.integers(difficulty.clutter[0], difficulty.clutter[1] + 1))
    clutter = [(COLD + 1 + i, points) for i, points in enumerate(_clutter(num_distractors, random))]
    view = jittered(camera_view(shot.view, difficulty=difficulty, seed=seed), difficulty=difficulty, random=random)
    body = [(label, points @ view[:, :2].T + view[:, 2]) for label, points in object_shapes(kind, appearance.build)]
    return draw_labels([*clutter, *body], size), num_distractors, random


def _signals(
    labels: Labels,
    tables: tuple[Floats, Floats, Floats],
    light: Light,
    difficulty: Difficulty,
    random: np.random.Generator,
) -> list[Signal]:
    """Signals without nuisances under one camera's light: rgb `(h, w, 3)`, nir and tir `(h, w, 1)`."""
    size = (labels.shape[0], labels.shape[1])
    empty = labels == 0
    gains = (light.rgb_gain, np.float32(light.nir_gain), np.float32(1.0))
    signals = []
    for modality, table in enumerate(tables):
        signal = table[labels]
        field = _background(size, light.background[modality], difficulty.background, random)[:, :, : table.shape[1]]
        signal[empty] = field[empty]
        shade = _shading(size, random)
        signal = signal + np.float32(light.thermal_offset) if modality == TIR else signal * (shade * gains[modality])
        grain = random.standard_normal(signal.shape, dtype=np.float32)
        signals.append(signal + np.float32(difficulty.texture) * grain)
    return signals


def _to_pixels(signals: list[Signal]) -> Pixels:
    """Signals in [0, 1] as `(3, h, w, 3)` uint8: NIR grey in three equal channels, TIR in pseudo-colours."""
    bytes_ = [(np.clip(signal, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8) for signal in signals]
    nir = np.repeat(bytes_[NIR], 3, axis=2)
    return np.stack([bytes_[RGB], nir, HEAT_TABLE[bytes_[TIR][:, :, 0]]])


def render_triplet(
    appearance: Appearance,
    shot: Shot,
    *,
    kind: Kind,
    size: tuple[int, int],
    difficulty: Difficulty,
    seed: int,
    nuisances: bool = True,
) -> Pixels:
    """The three images of one shot.

    Args:
        appearance: appearance of the identity.
        shot: identity, view, light and name; equal arguments give equal pixels.
        size: (height, width) in pixels.
        nuisances: False leaves out the degradation of one modality and changes nothing else.

    Returns:
        `(3, h, w, 3)` uint8 in the order rgb, nir, tir.
    """
    labels, num_distractors, random = _scene(appearance, shot, kind, size, difficulty, seed)
    tables = _value_tables(appearance, kind, num_distractors, random)
    light = camera_light(shot.light, difficulty=difficulty, seed=seed)
    signals = _signals(labels, tables, light, difficulty, random)
    if shot.night:
        signals[RGB] = darkness(signals[RGB], NIGHT_STRENGTH, random)
    nuisance = shot_nuisance(shot, difficulty=difficulty, seed=seed) if nuisances else None
    if nuisance is not None:
        strike = numpy_generator(seed, "strike", shot.identity, shot.view, shot.light, shot.name)
        signals[nuisance.modality] = nuisance(signals[nuisance.modality], strike)
    return _to_pixels(signals)


def object_mask(
    appearance: Appearance, shot: Shot, *, kind: Kind, size: tuple[int, int], difficulty: Difficulty, seed: int
) -> NDArray[np.bool_]:
    """Mask `(h, w)` of the pixels where `render_triplet` shows the object, without background and distractors."""
    labels, _, _ = _scene(appearance, shot, kind, size, difficulty, seed)
    mask: NDArray[np.bool_] = (labels > 0) & (labels <= COLD)
    return mask


def shot_nuisance(shot: Shot, *, difficulty: Difficulty, seed: int) -> Nuisance | None:
    """The nuisance of one shot, or None."""
    return draw_nuisance(difficulty, numpy_generator(seed, "nuisance", shot.identity, shot.view, shot.light, shot.name))
