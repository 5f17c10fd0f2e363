"""Turn the arguments of `write_synthetic` into the list of triplets; mistakes are reported before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trireid.data.listing import is_file
from trireid.data.synthetic.difficulty import DIFFICULTIES, Difficulty
from trireid.data.synthetic.identities import Appearance, draw_identities
from trireid.data.synthetic.layouts import Item, Layout, find_layout, numbered_names, parse_names, plan_items
from trireid.data.synthetic.render import Shot
from trireid.data.synthetic.shapes import Kind
from trireid.errors import DataError, InputError
from trireid.files import read_text

NUM_IDS, NUM_CAMERAS, PER_CAMERA = 24, 2, 4
MIN_SIDE, MAX_SIDE = 16, 4096
MOST_TRIPLETS = 1_000_000
SPLITS = ("train", "test")


@dataclass(frozen=True)
class RenderSettings:
    """Settings that all triplets of a tree share; `strip` puts the three images into one file."""

    kind: Kind
    strip: bool
    size: tuple[int, int]
    difficulty: Difficulty
    seed: int


@dataclass(frozen=True)
class Plan:
    """Everything that is to be written.

    Attributes:
        appearances: by split, then by identity.
    """

    layout: str
    settings: RenderSettings
    items: list[Item]
    appearances: dict[str, dict[str, Appearance]]


def make_plan(
    *,
    layout: str,
    names: Sequence[Path] | None,
    num_ids: int | None,
    num_cameras: int | None,
    per_camera: int | None,
    difficulty: str,
    seed: int,
    image_size: tuple[int, int] | None,
) -> Plan:
    """Plan a tree; arguments as `write_synthetic`.

    Raises:
        InputError: a value is not allowed.
        DataError: a name list does not fit the layout.
    """
    form = find_layout(layout)
    if difficulty not in DIFFICULTIES:
        raise InputError(f"difficulty {difficulty!r} is unknown; use one of {', '.join(DIFFICULTIES)}")
    size = _checked_size(form, image_size)
    given = (num_ids, num_cameras, per_camera)
    if names is not None:
        if any(value is not None for value in given):
            raise InputError(
                "name lists and numbers cannot be combined; give a list, or the numbers of identities, cameras, images"
            )
        shots = read_names(form, names)
    else:
        shots = _numbered_shots(form, *given)
    strengths = DIFFICULTIES[difficulty]
    appearances = {
        split: draw_identities(
            sorted({shot.identity for shot in shots[split]}),
            kind=form.kind,
            difficulty=strengths,
            seed=seed,
            split=split,
        )
        for split in SPLITS
    }
    items = plan_items(form, train=shots["train"], test=shots["test"])
    settings = RenderSettings(kind=form.kind, strip=form.strip, size=size, difficulty=strengths, seed=seed)
    return Plan(form.name, settings, items, appearances)


def _checked_size(layout: Layout, image_size: tuple[int, int] | None) -> tuple[int, int]:
    if image_size is None:
        return layout.size
    if layout.strip and image_size != layout.size:
        raise InputError(
            f"image size {image_size} with layout {layout.name}: its strips hold images of {layout.size} "
            "(height, width); leave the size out"
        )
    if min(image_size) < MIN_SIDE:
        raise InputError(f"image size {image_size} is too small; both sides must be at least {MIN_SIDE} pixels")
    if max(image_size) > MAX_SIDE:
        raise InputError(f"image size {image_size} is too large; both sides must be at most {MAX_SIDE} pixels")
    return image_size


def _numbered_shots(
    layout: Layout, num_ids: int | None, num_cameras: int | None, per_camera: int | None
) -> dict[str, list[Shot]]:
    """`num_ids` training identities, numbered from 1, and as many test identities after them."""
    ids = NUM_IDS if num_ids is None else num_ids
    cameras = NUM_CAMERAS if num_cameras is None else num_cameras
    images = PER_CAMERA if per_camera is None else per_camera
    most_ids = (10**layout.identity_digits - 1) // 2
    if not 2 <= ids <= most_ids:
        raise InputError(f"{ids} identities: give 2 to {most_ids} (per split; the test split gets as many)")
    if not 2 <= cameras <= layout.max_cameras:
        raise InputError(
            f"{cameras} cameras: give 2 to {layout.max_cameras} with layout {layout.name}; "
            "with a single camera no query has a match"
        )
    if images < 1:
        raise InputError(f"{images} images per camera: give at least 1")
    if 2 * ids * cameras * images > MOST_TRIPLETS:
        raise InputError(
            f"2 x {ids} identities, {cameras} cameras and {images} images each are more than {MOST_TRIPLETS} triplets:"
            " give fewer"
        )
    shots = {}
    for split, first in (("train", 1), ("test", ids + 1)):
        made = numbered_names(layout, first=first, num_ids=ids, num_cameras=cameras, per_camera=images)
        shots[split] = parse_names(layout, list(made), source="made names")
    return shots


def read_names(layout: Layout, names: Sequence[Path]) -> dict[str, list[Shot]]:
    """Shots of each split from name lists; see `write_synthetic`.

    Raises:
        DataError: a list is missing, of no known split, the second of one split, or holds a name that is not valid.
    """
    shots: dict[str, list[Shot]] = {split: [] for split in SPLITS}
    for path in _list_files(layout, names):
        split = next((split for split in SPLITS if path.stem.endswith(f"_{split}")), None)
        if split is None:
            raise DataError(f"{path}: the split is not known; the name must end with _train.txt or _test.txt")
        if shots[split]:
            raise DataError(f"{path}: a second list of the split {split}; give one for each split")
        shots[split] = parse_names(layout, _read_lines(path), source=str(path))
    return shots


def _list_files(layout: Layout, names: Sequence[Path]) -> list[Path]:
    """The list files: each given file, and `<SET>_train.txt` and `<SET>_test.txt` of each given folder."""
    files = []
    for path in names:
        if path.is_dir():
            files += [path / f"{layout.name.upper()}_{split}.txt" for split in SPLITS]
        else:
            files.append(path)
    for path in files:
        if not is_file(path):
            raise DataError(f"{path}: there is no such name list; give a text file with one name per line")
    if not files:
        raise InputError("no name list was given; give at least one file or folder")
    return files


def _read_lines(path: Path) -> list[str]:
    try:
        text = read_text(path, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the name list cannot be read ({error}); give a UTF-8 text file") from error
    # Not splitlines, which also splits at characters that a name may hold.
    return [line.strip(" \t\r") for line in text.split("\n") if line.strip(" \t\r")]
