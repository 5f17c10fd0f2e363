"""Find the cells of `tno_cells.csv` in the stills of TNO: where each patch of a first capture is in the second.

    python benchmarks/tno_registration.py path/to/TNO --out runs/tno_cells.csv

Needs OpenCV (it comes with `trireid[gradcam]`) and half a minute. SIFT features of all three spectra of a scene give
one homography (MAGSAC). A grid of 64 px on the first capture is carried over by it; in three scenes, where the camera
was moved, the matches near a cell correct it. Cells without structure in any spectrum at both captures are left out.

`tno_scenes.py` reads the stored table, so that the data set does not depend on the version of OpenCV. With OpenCV
5.0.0 this script finds that table exactly; with another one, cells at the border of a threshold may differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tno_scenes import SIDE, Still, find_stills, known_stills, prepare, read_stills, resized

from trireid.errors import DataError, TrireidError
from trireid.files import write_text

ORDER = ("Kaptein_1654", "Marne_03", "Marne_04", "barbed_wire_1", "Movie_12", "Marne_15", "Marne_01", "Kaptein_01")
"""Identities are numbered in this order of the scenes."""
MOVED = ("barbed_wire_1", "Kaptein_01", "Marne_01")
"""Scenes whose second capture is from another place, so that a homography does not carry every depth."""
SPECTRA = ("rgb", "nir", "tir")
BORDER = SIDE // 2 + 8
NEAR, LOWEST_NEAR = 70, 2
"""Pixels within which matches correct a cell of a moved scene, and how many there must be."""
STRUCTURE, STRUCTURE_BESIDE_THERMAL = 14, 12
"""Standard deviation of the blurred grey values that a cell must have: at both captures in one spectrum; and at the
first in visible or near-infrared light, which leaves out sky with clouds that only the thermal still shows."""
BRIGHT, PLAIN = 190, 25
"""A brighter cell with less structure is sky with vignetting."""

Points = NDArray[np.float32]
Images = Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Registration:
    """A homography `(3, 3)` from the first to the second capture, and the matches that agree with it, `(n, 2)` each."""

    homography: NDArray[np.float64]
    first: Points
    second: Points

    def carry(self, points: Points) -> Points:
        """Points `(n, 2)` of the first capture in the second."""
        carried: Points = cv2.perspectiveTransform(points[:, None], self.homography)[:, 0]
        return carried

    def carry_centre(self, x: int, y: int, *, moved: bool) -> tuple[int, int] | None:
        """The centre of a cell in the second capture; None if a moved scene has too few matches near it."""
        place = self.carry(np.array([[x, y]], np.float32))[0]
        if moved:
            near = np.hypot(*(self.first - [x, y]).T) < NEAR
            if near.sum() < LOWEST_NEAR:
                return None
            place = place + np.median(self.second[near] - self.carry(self.first[near]), axis=0)
        return round(float(place[0])), round(float(place[1]))


def register(first: Images, second: Images) -> Registration:
    """Match two captures by SIFT features of the three spectra together."""
    contrast, features = cv2.createCLAHE(4, (8, 8)), cv2.SIFT_create(6000, contrastThreshold=0.006)
    sides: tuple[list[Any], list[Any]] = [], []
    for name in SPECTRA:
        images = [contrast.apply(cv2.GaussianBlur(each[name], (0, 0), 1.5)) for each in (first, second)]
        (points, described), (other_points, other_described) = (features.detectAndCompute(i, None) for i in images)
        for best, next_best in cv2.BFMatcher().knnMatch(described, other_described, k=2):
            if best.distance < 0.82 * next_best.distance:
                sides[0].append(points[best.queryIdx].pt)
                sides[1].append(other_points[best.trainIdx].pt)
    one, other = (np.array(side, np.float32) for side in sides)
    homography, agree = cv2.findHomography(one, other, cv2.USAC_MAGSAC, 3.0, maxIters=20000, confidence=0.9999)
    chosen = agree.ravel() > 0
    return Registration(homography, one[chosen], other[chosen])


def find_cells(scene: str, first: Images, second: Images, found: Registration) -> list[tuple[int, int, int, int]]:
    """Columns and rows (x, y) in the first and in the second capture of every cell that is kept, row by row."""
    height, width = first["tir"].shape
    other_height, other_width = second["tir"].shape
    blurred = [{name: cv2.GaussianBlur(each[name], (0, 0), 2.5) for name in SPECTRA} for each in (first, second)]
    cells = []
    for y in range(BORDER, height - BORDER + 1, SIDE):
        for x in range(BORDER, width - BORDER + 1, SIDE):
            place = found.carry_centre(x, y, moved=scene in MOVED)
            if place is None:
                continue
            inside = BORDER <= place[0] <= other_width - BORDER and BORDER <= place[1] <= other_height - BORDER
            if inside and _is_clear(blurred, first["rgb"], (x, y), place):
                cells.append((x, y, *place))
    return cells


def _is_clear(
    blurred: Sequence[Images], visible: NDArray[np.uint8], at: tuple[int, int], place: tuple[int, int]
) -> bool:
    """Whether a cell has structure, see the constants."""
    one, other = (
        [float(_cut(images[name], *centre).astype(np.float64).std()) for name in SPECTRA]
        for images, centre in zip(blurred, (at, place), strict=True)
    )
    if max(map(min, one, other)) < STRUCTURE or max(one[:2]) < STRUCTURE_BESIDE_THERMAL:
        return False
    return not (_cut(visible, *at).mean() > BRIGHT and one[0] < PLAIN)


def _cut(image: NDArray[np.uint8], x: int, y: int) -> NDArray[np.uint8]:
    half = SIDE // 2
    return image[y - half : y + half, x - half : x + half]


def table(folder: Path) -> str:
    """The text of the table.

    Raises:
        DataError: stills are missing or altered.
    """
    images, faults = read_stills(find_stills(folder), known_stills())
    if faults:
        raise DataError("\n".join(faults))
    lines = ["identity,scene,x_1,y_1,x_2,y_2"]
    for scene in ORDER:
        raw = [_capture(images, scene, capture) for capture in (1, 2)]
        found = register(*({s.modality: resized(s, pixels) for s, pixels in each.items()} for each in raw))
        first, second = (_prepared(each) for each in raw)
        for cell in find_cells(scene, first, second, found):
            lines.append(f"{len(lines):06d},{scene},{','.join(map(str, cell))}")
    return "\n".join(lines) + "\n"


def _capture(images: Mapping[Still, Any], scene: str, capture: int) -> dict[Still, Any]:
    return {still: pixels for still, pixels in images.items() if (still.scene, still.capture) == (scene, capture)}


def _prepared(capture: Mapping[Still, Any]) -> dict[str, NDArray[np.uint8]]:
    num_rows = next(len(pixels) for still, pixels in capture.items() if still.modality == "tir")
    return {still.modality: prepare(still, pixels, num_rows=num_rows) for still, pixels in capture.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the TNO Image Fusion Dataset was unpacked")
    parser.add_argument("--out", type=Path, required=True, help="file for the table")
    given = parser.parse_args(arguments)
    try:
        write_text(given.out, table(given.folder))
    except TrireidError as error:
        sys.stderr.write("".join(f"error: {line}\n" for line in str(error).split("\n")))
        sys.exit(2)


if __name__ == "__main__":
    main()
