"""Cut the scene patches of `data.format=tno_scenes` out of the TRICLOBS stills of the TNO Image Fusion Dataset.

    python benchmarks/tno_scenes.py path/to/TNO --out data/tno_scenes

The folder holds `Triclobs_images/` as TNO publishes it (docs/real_data.md says where, and how to credit TNO). Every
still is compared with a known size and checksum; the pixels written are the same every time, and on every machine.

`tno_stills.csv` lists the stills: eight scenes, each captured twice in three spectra. `tno_cells.csv` lists the
identities: the centre of a 64 x 64 patch in both captures, which `tno_registration.py` found. Four views of each patch
are cut at each capture, shifted by a few pixels.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trireid.errors import DataError, TrireidError, printable
from trireid.files import check_regular, write_text, writing

Pixels = NDArray[np.uint8]
HERE = Path(__file__).resolve().parent
STILLS, CELLS = HERE / "tno_stills.csv", HERE / "tno_cells.csv"
FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
SPLITS = {
    "train": ("Marne_03", "Marne_04", "barbed_wire_1", "Kaptein_01"),
    "test": ("Kaptein_1654", "Movie_12", "Marne_15", "Marne_01"),
}
SIDE = 64
SHIFTS = {1: ((0, 0), (5, -4), (-4, 5), (-5, -5)), 2: ((3, 3), (-6, 1), (2, -6), (6, 4))}
"""Rows and columns that the views of each capture are shifted by; no shift is used at both."""
WIDTH = 640
RESIZED = ("soldiers_with_jeep", "barbed_wire_1")
"""Folders of stills that are larger than all others, brought to `WIDTH` columns."""
BLACK_HOT = "square_with_houses/LWIR.bmp"
"""The one thermal still in which warm is dark; it is inverted."""
CREDIT = """Scene patches cut from the TNO Image Fusion Dataset (TRICLOBS stills) by trireid.

Owner of the images: TNO, Soesterberg, The Netherlands. They may be used freely for research, and in publications
without prior notice, if TNO is credited and the data set is referenced:
A. Toet, TNO Image Fusion Dataset, figshare, doi:10.6084/m9.figshare.1008029;
A. Toet, The TNO Multiband Image Data Collection, Data in Brief 15, 249-251, 2017.
"""


@dataclass(frozen=True)
class Still:
    """One published image: its scene, capture (1 or 2), spectrum and file, and what its grey pixels must be."""

    scene: str
    capture: int
    modality: str
    file: str
    size: tuple[int, int]
    sha256: str


@dataclass(frozen=True)
class Cell:
    """One identity: (row, column) of the centre of its patch by capture."""

    identity: str
    scene: str
    centres: Mapping[int, tuple[int, int]]


def known_stills(path: Path = STILLS) -> list[Still]:
    """The stills that the set is made of."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Still(
                row["scene"],
                int(row["capture"]),
                row["modality"],
                row["file"],
                (int(row["height"]), int(row["width"])),
                row["sha256"],
            )
            for row in csv.DictReader(file)
        ]


def known_cells(path: Path = CELLS) -> list[Cell]:
    """The identities and where they are."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Cell(
                row["identity"],
                row["scene"],
                {capture: (int(row[f"y_{capture}"]), int(row[f"x_{capture}"])) for capture in SHIFTS},
            )
            for row in csv.DictReader(file)
        ]


def find_stills(folder: Path) -> Path:
    """The folder of the stills in what a user unpacked.

    Raises:
        DataError: it is not there.
    """
    places = [folder / "Triclobs_images", folder / "TNO_Image_Fusion_Dataset" / "Triclobs_images", folder]
    for place in places:
        if (place / "Marne_15").is_dir():
            return place
    raise DataError(
        f"{folder}: no Triclobs_images/Marne_15 in it; give the folder where the TNO Image Fusion Dataset was unpacked "
        "(https://doi.org/10.6084/m9.figshare.1008029, see docs/real_data.md)"
    )


def read_stills(folder: Path, stills: Sequence[Still]) -> tuple[dict[Still, Pixels], list[str]]:
    """The grey pixels of every still, and one line for each that is missing, unreadable or altered."""
    found: dict[Still, Pixels] = {}
    faults: list[str] = []
    for still in stills:
        path = folder / still.file
        try:
            check_regular(path)  # a pipe would never end
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L"))
        except FileNotFoundError:
            faults.append(f"{path}: missing")
            continue
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            faults.append(f"{path}: cannot be read ({_reason(error)})")
            continue
        if pixels.shape != still.size:
            faults.append(f"{path}: {_size(pixels.shape)} pixels, published are {_size(still.size)}")
        elif hashlib.sha256(pixels.tobytes()).hexdigest() != still.sha256:
            faults.append(f"{path}: its pixels are not those that TNO published (SHA-256 {still.sha256[:12]}...)")
        else:
            found[still] = pixels
    return found, faults


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(text.split("\n")[0], limit=200)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)


def prepare(still: Still, pixels: Pixels, *, num_rows: int) -> Pixels:
    """Bring a still to the size of the others of its capture and stretch its grey values.

    Args:
        still: which one it is.
        pixels: as published.
        num_rows: of the thermal still of this capture. A still with fewer is continued by its first and last row.
    """
    pixels = resized(still, pixels)
    if (lacking := num_rows - pixels.shape[0]) > 0 and not still.file.startswith(RESIZED):
        pixels = np.pad(pixels, ((lacking // 2, lacking - lacking // 2), (0, 0)), mode="edge")
    darkest, brightest = np.percentile(pixels, [0.5, 99.5])
    stretched = (pixels.astype(np.float64) - darkest) / max(brightest - darkest, 1) * 255
    grey: Pixels = stretched.clip(0, 255).astype(np.uint8)
    return 255 - grey if still.file == BLACK_HOT else grey


def resized(still: Still, pixels: Pixels) -> Pixels:
    """The stills of two folders are shrunk to the width of the others."""
    if not still.file.startswith(RESIZED):
        return pixels
    return shrink(pixels, (round(WIDTH * pixels.shape[0] / pixels.shape[1]), WIDTH))


def shrink(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize to fewer pixels by the mean over the area of each, in float32 and in the order of OpenCV's INTER_AREA."""
    rows, columns = _area_weights(pixels.shape[0], size[0]), _area_weights(pixels.shape[1], size[1])
    source = pixels.astype(np.float32)
    across = np.zeros((pixels.shape[0], size[1]), np.float32)
    for index, weight in zip(*columns, strict=True):
        across = across + source[:, index] * weight
    down = np.zeros(size, np.float32)
    for index, weight in zip(*rows, strict=True):
        down = down + across[index] * weight[:, None]
    return np.rint(down).clip(0, 255).astype(np.uint8)


def _area_weights(length: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The source pixels of each target pixel and their shares: `(terms, target)` both, filled up with shares of 0."""
    scale = length / target
    covered: list[list[tuple[int, float]]] = []
    for place in range(target):
        first, last = place * scale, min((place + 1) * scale, length)
        pixels = range(int(first), min(int(np.ceil(last)), length))
        shares = [(pixel, (min(last, pixel + 1) - max(first, pixel)) / (last - first)) for pixel in pixels]
        covered.append([(pixel, share) for pixel, share in shares if share > 1e-3 / scale])
    terms = max(map(len, covered))
    filled = [[*each, *[(0, 0.0)] * (terms - len(each))] for each in covered]
    return (
        np.array([[pixel for pixel, _ in each] for each in filled]).T,
        np.array([[share for _, share in each] for each in filled], dtype=np.float32).T,
    )


def patches(cell: Cell, capture: int, pixels: Pixels) -> list[Pixels]:
    """The four views of an identity in one still, `(64, 64)` each."""
    row, column = (centre - SIDE // 2 for centre in cell.centres[capture])
    views = [
        pixels[row + down : row + down + SIDE, column + right : column + right + SIDE]
        for down, right in SHIFTS[capture]
    ]
    assert all(view.shape == (SIDE, SIDE) for view in views), cell
    return views


def write_tree(out: Path, images: Mapping[Still, Pixels], cells: Sequence[Cell]) -> int:
    """Write every patch as a grey PNG and return their number; the folder appears when it is complete."""
    _check_absent(out)
    with writing(out.parent, advice="choose another --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        # A folder of our own name, removed whatever happens: one that a user has is not touched.
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as unfinished:
            number = _write_patches(Path(unfinished) / "tree", images, cells)
            if out.exists():
                out.rmdir()
            (Path(unfinished) / "tree").rename(out)
    return number


def _check_absent(out: Path) -> None:
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise DataError(f"{out} exists and is not an empty folder: choose another --out, or remove it")


def _write_patches(root: Path, images: Mapping[Still, Pixels], cells: Sequence[Cell]) -> int:
    split_of = {scene: split for split, scenes in SPLITS.items() for scene in scenes}
    num_rows = {
        (still.scene, still.capture): len(pixels) for still, pixels in images.items() if still.modality == "tir"
    }
    number = 0
    for still, pixels in images.items():
        folder = root / split_of[still.scene] / FOLDERS[still.modality]
        folder.mkdir(parents=True, exist_ok=True)
        prepared = prepare(still, pixels, num_rows=num_rows[still.scene, still.capture])
        for cell in cells:
            if cell.scene == still.scene:
                for view, patch in enumerate(patches(cell, still.capture, prepared)):
                    Image.fromarray(patch).save(folder / f"{cell.identity}_cam{still.capture}_0_{view:02d}.png")
                    number += 1
    write_text(root / "CREDIT.txt", CREDIT)
    return number


def convert(
    folder: Path, out: Path, *, stills: Sequence[Still] | None = None, cells: Sequence[Cell] | None = None
) -> int:
    """Write the tree and return the number of images.

    Args:
        folder: what a user unpacked.
        out: absent or empty.
        stills, cells: in place of those of the set.

    Raises:
        DataError: stills are missing or altered, all in one message of a line each; or `out` is not empty.
        RunError: `out` cannot be written.
    """
    _check_absent(out)
    stills = known_stills() if stills is None else stills
    images, faults = read_stills(find_stills(folder), stills)
    if faults:
        raise DataError("\n".join([*faults, f"{len(faults)} of {len(stills)} stills cannot be used: restore them"]))
    return write_tree(out, images, known_cells() if cells is None else cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what the TNO Image Fusion Dataset was unpacked to")
    parser.add_argument("--out", type=Path, default=Path("data/tno_scenes"), help="folder to write, absent or empty")
    given = parser.parse_args(arguments)
    try:
        number = convert(given.folder, given.out)
    except TrireidError as error:
        sys.stderr.write("".join(f"error: {line}\n" for line in str(error).split("\n")))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written\n")
        sys.exit(130)
    print(f"{given.out}: {number} images; credit TNO as {given.out / 'CREDIT.txt'} says")


if __name__ == "__main__":
    main()
