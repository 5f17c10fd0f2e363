"""How identities are drawn: which of them look alike in which spectrum.

An identity is an arrangement of six parts (its build) and, for each spectrum, a look: the RGB colour, the NIR
reflectance or the temperature of each part, from small palettes that training and test identities share. The
three looks are drawn independently of each other, but handed out by a code (`look_codes`) that makes every single
spectrum ambiguous:

- `easy`: two identities share each look, different ones in each spectrum; any two spectra tell all identities apart.
- `hard`: n identities of one build share L = ceil(sqrt(n / 2)) looks per spectrum, up to 2 L identities per look, and
  any two spectra leave pairs of identities that look alike: only all three tell them apart. (The codes are an
  orthogonal array of strength 2: rows (x, y, x + y) and (x, y, x + y + 1) modulo L; for n < 2 L * L they are a part of
  it, with fewer ambiguous pairs.)

Oracle mAP (`oracle_map`: the looks are known exactly, ties are broken at random), 24 test identities, 2 cameras,
4 images per camera: easy 0.46 in any single spectrum and 1.00 in any two; hard 0.24 in one, 0.46 to 0.73 in
two, 1.00 in all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trireid.data.randomness import numpy_generator
from trireid.data.synthetic.difficulty import Difficulty
from trireid.data.synthetic.shapes import NUM_BUILDS, NUM_PARTS, PART_AREAS, Kind
from trireid.errors import InputError

Codes = NDArray[np.int64]

RGB_PALETTE = np.array(
    [
        (0.82, 0.14, 0.14),
        (0.12, 0.58, 0.20),
        (0.14, 0.24, 0.82),
        (0.88, 0.76, 0.12),
        (0.92, 0.92, 0.92),
        (0.07, 0.07, 0.09),
    ],
    dtype=np.float32,
)
NIR_PALETTE = np.array([0.10, 0.36, 0.62, 0.90], dtype=np.float32)
TIR_PALETTE = np.array([0.18, 0.40, 0.62, 0.84], dtype=np.float32)
PALETTES: tuple[NDArray[np.float32], ...] = (RGB_PALETTE, NIR_PALETTE[:, None], TIR_PALETTE[:, None])

IDENTITIES_PER_BUILD = 12
"""A split with fewer than twice as many identities has a single build."""
CANDIDATES = 16
MAX_LOOKS = 1000


@dataclass(frozen=True)
class Appearance:
    """The appearance of one identity.

    Attributes:
        build: arrangement of the parts, 0 to 2. All identities that share a look share the build, so that the shape,
            which every spectrum shows, gives nothing away.
        looks: number of the look in rgb, nir and tir, within the split.
        parts: palette index of each part, one row per spectrum.
    """

    build: int
    looks: tuple[int, int, int]
    parts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def look_codes(num_identities: int, *, shared_pairs: bool) -> Codes:
    """Which look each identity has in each spectrum, for identities of one build.

    No two rows are equal, and from 3 identities on each column has fewer values than there are rows.

    Returns:
        `(n, 3)` look numbers in the order rgb, nir, tir.
    """
    index = np.arange(num_identities)
    if shared_pairs or num_identities < 3:
        num_looks = max(2, int(np.ceil(np.sqrt(num_identities / 2))))
        cell, extra = index // 2, index % 2
        first = cell % num_looks
        second = (first + cell // num_looks) % num_looks  # diagonals first, so that a part of the array is balanced
        return np.stack([first, second, (first + second + extra) % num_looks], axis=1)
    half = (num_identities + 1) // 2
    neighbour = ((index + 1) % num_identities) // 2
    return np.stack([index // 2, neighbour, index % half], axis=1)


def _spread_looks(num_looks: int, *, kind: Kind, spectrum: int, random: np.random.Generator) -> Codes:
    """Palette indices `(looks, parts)`, each drawn as the candidate that is farthest from all before it."""
    palette, areas = PALETTES[spectrum], np.array(PART_AREAS[kind])
    chosen: Codes = random.integers(len(palette), size=(1, NUM_PARTS))
    while len(chosen) < num_looks:
        candidates = random.integers(len(palette), size=(CANDIDATES, NUM_PARTS))
        difference = np.abs(palette[candidates][:, None] - palette[chosen][None]).sum(
            axis=-1
        )  # (candidates, looks, parts)
        nearest = (difference * areas).sum(axis=-1).min(axis=1)
        best = int(nearest.argmax())
        if nearest[best] > 0.0:
            chosen = np.concatenate([chosen, candidates[best : best + 1]])
    return chosen


def _builds(num_identities: int) -> Codes:
    """Build of each identity: as many builds as leave IDENTITIES_PER_BUILD each, in equal shares."""
    num_builds = min(NUM_BUILDS, max(1, num_identities // IDENTITIES_PER_BUILD))
    return np.arange(num_identities) * num_builds // num_identities


def draw_identities(
    identities: Sequence[str], *, kind: Kind, difficulty: Difficulty, seed: int, split: str
) -> dict[str, Appearance]:
    """Appearance of every identity of one split; the splits draw their looks from the same palettes.

    Raises:
        InputError: more identities than the palettes can tell apart.
    """
    if not identities:
        return {}
    names = sorted(identities)
    random = numpy_generator(seed, "identities", kind, difficulty.name, split)
    builds = _builds(len(names))
    codes = np.zeros((len(names), 3), dtype=np.int64)
    for build in np.unique(builds):
        rows = np.flatnonzero(builds == build)
        codes[rows] = look_codes(len(rows), shared_pairs=difficulty.shared_pairs) + codes.max(axis=0) + (build > 0)
    num_looks = codes.max(axis=0) + 1
    if num_looks.max() > MAX_LOOKS:
        raise InputError(
            f"{len(names)} identities need {num_looks.max()} looks per spectrum, and at most {MAX_LOOKS} can be told "
            "apart; use fewer identities"
        )
    looks = [_spread_looks(int(count), kind=kind, spectrum=i, random=random) for i, count in enumerate(num_looks)]
    order = random.permutation(len(names))
    return {names[place]: _appearance(int(builds[row]), codes[row], looks) for row, place in enumerate(order)}


def _appearance(build: int, code: Codes, looks: Sequence[Codes]) -> Appearance:
    rgb, nir, tir = (tuple(int(part) for part in looks[i][code[i]]) for i in range(3))
    return Appearance(build=build, looks=(int(code[0]), int(code[1]), int(code[2])), parts=(rgb, nir, tir))


def expected_average_precision(num_positive: int, num_total: int) -> float:
    """Mean average precision of `num_positive` among `num_total` items over all orders.

    Closed form: (P - 1) / (T - 1) + H_T (T - P) / (T (T - 1)), where H is the harmonic number.
    """
    if num_total == num_positive:
        return 1.0
    harmonic = sum(1.0 / rank for rank in range(1, num_total + 1))
    spread = num_total * (num_total - 1)
    return (num_positive - 1) / (num_total - 1) + harmonic * (num_total - num_positive) / spread


def oracle_map(codes: Codes, spectra: Sequence[int], *, counts: Codes | None = None) -> float:
    """The mAP of an ideal ranking that knows the looks of `spectra` exactly and breaks ties at random.

    Items of the query's identity and camera are excluded, those of other identities are not.

    Args:
        codes: `(n, 3)` look numbers.
        spectra: columns that are known.
        counts: `(n, cameras)` images of each identity; None: 4 in each of 2 cameras.
    """
    counts = np.full((len(codes), 2), 4) if counts is None else counts
    _, group = np.unique(codes[:, list(spectra)], axis=0, return_inverse=True)
    group, total = group.reshape(-1), counts.sum(axis=1)
    others = np.bincount(group, weights=total)[group] - total  # images of other identities that look alike
    values, weights = [], []
    for (identity, _), number in np.ndenumerate(counts):
        if number:
            positive = int(total[identity] - number)
            values.append(expected_average_precision(positive, positive + int(others[identity])))
            weights.append(number)
    return float(np.average(values, weights=weights))
