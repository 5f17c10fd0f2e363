"""The four layouts: how a shot is named, into which folders its files go, and which test shots are queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from trireid.data import msvr310, rgbnt100, rgbnt201, wmveid863
from trireid.data.listing import IMAGE_SUFFIXES, NameFields
from trireid.data.synthetic.render import Shot
from trireid.data.synthetic.shapes import Kind
from trireid.errors import DataError, InputError, printable
from trireid.files import inside

QUERY_STRIDE = 5
"""RGBNT100 and WMVeID863: every fifth test triplet of an identity is a query (1715 of 8575 in RGBNT100)."""
NUM_VIEWS = 8
TRAIN_IDENTITIES_RGBNT201 = 171


@dataclass(frozen=True)
class Item:
    """One triplet to write: what it shows, and its files relative to the root of the tree.

    Attributes:
        split: `train` or `test`.
        is_query: whether it is a query (where query and gallery are one set, every test item is).
        targets: one tuple per folder it belongs to (gallery, and query): three paths, or one for a strip.
    """

    shot: Shot
    split: str
    is_query: bool
    targets: tuple[tuple[PurePosixPath, ...], ...]


@dataclass(frozen=True)
class Layout:
    """One of the published layouts.

    Attributes:
        size: (height, width) of one image.
        strip: whether the three images lie side by side in one file, whose columns are fixed.
        identity_digits, max_cameras: the most that the names can hold.
        parse: the shot that a line of a name list describes, None if it is not valid.
        number: (identity, camera, place, index) -> name of the `index`-th image of an identity, which is the
            `place`-th at that camera.
        queries: numbers of the test shots that are queries, None where query and gallery are one set.
        paths: files of one shot in the folder of a split, given the folder.
        folders: folder of train, gallery and query.
    """

    name: str
    kind: Kind
    size: tuple[int, int]
    strip: bool
    identity_digits: int
    max_cameras: int
    parse: Callable[[str], Shot | None]
    number: Callable[[str, int, int, int], str]
    queries: Callable[[Sequence[Shot]], set[int]] | None
    paths: Callable[[str, Shot], tuple[PurePosixPath, ...]]
    folders: tuple[str, str, str]


def _parse_by_camera(parse_name: Callable[[str], NameFields | None], line: str) -> Shot | None:
    """The shot of a name whose camera is both view and light."""
    fields = parse_name(PurePosixPath(line).stem)
    if fields is None or fields.camera is None:
        return None
    camera = int(fields.camera)
    return Shot(name=line, identity=fields.identity, view=camera, light=camera)


def _parse_msvr310(line: str) -> Shot | None:
    fields = msvr310.parse_name(PurePosixPath(line).stem)
    if fields is None or fields.camera is None or fields.scene is None:
        return None
    return Shot(name=line, identity=fields.identity, view=int(fields.camera), light=int(fields.scene))


def _parse_wmveid863(line: str) -> Shot | None:
    """Lines are `<id>/<name>`, because the names do not hold the identity."""
    identity, _, name = line.partition("/")
    fields = wmveid863.parse_name(PurePosixPath(name).stem)
    if fields is None or not (identity.isascii() and identity.isdigit()):
        return None
    camera, _, night = fields
    return Shot(name=name, identity=identity, view=int(camera), light=int(camera), night=night)


def _name_wmveid863(identity: str, camera: int, place: int, index: int) -> str:
    night = int(camera % 4 == 0)  # every fourth camera works at night
    return f"{identity}/v{camera}_n{night}_s{camera:03d}_{index:04d}.jpg"


def _every_fifth(shots: Sequence[Shot]) -> set[int]:
    """Every fifth shot of each identity, from its first on, in the order of names."""
    seen: dict[str, int] = {}
    chosen = set()
    for number in sorted(range(len(shots)), key=lambda i: (shots[i].identity, shots[i].name)):
        place = seen.get(shots[number].identity, 0)
        seen[shots[number].identity] = place + 1
        if place % QUERY_STRIDE == 0:
            chosen.add(number)
    return chosen


def _seen_in_two_scenes(shots: Sequence[Shot]) -> set[int]:
    """Every shot of an identity that was seen in two or more scenes (591 shots of 52 identities in MSVR310)."""
    scenes: dict[str, set[int]] = {}
    for shot in shots:
        scenes.setdefault(shot.identity, set()).add(shot.light)
    return {number for number, shot in enumerate(shots) if len(scenes[shot.identity]) > 1}


def _paths_by_modality(folder: str, shot: Shot) -> tuple[PurePosixPath, ...]:
    return tuple(PurePosixPath(folder, modality, shot.name) for modality in ("RGB", "NI", "TI"))


def _paths_by_identity(folder: str, shot: Shot) -> tuple[PurePosixPath, ...]:
    return tuple(PurePosixPath(folder, shot.identity, modality, shot.name) for modality in ("vis", "ni", "th"))


def _path_of_strip(folder: str, shot: Shot) -> tuple[PurePosixPath, ...]:
    return (PurePosixPath(folder, shot.name),)


LAYOUTS: dict[str, Layout] = {
    "rgbnt201": Layout(
        name="rgbnt201",
        kind="person",
        size=(256, 128),
        strip=False,
        identity_digits=6,
        max_cameras=9,
        parse=partial(_parse_by_camera, rgbnt201.parse_name),
        number=lambda identity, camera, place, _: f"{identity}_cam{camera}_0_{place:02d}.jpg",
        queries=None,
        paths=_paths_by_modality,
        folders=("train", "test", "test"),
    ),
    "rgbnt100": Layout(
        name="rgbnt100",
        kind="vehicle",
        size=(128, 256),
        strip=True,
        identity_digits=4,
        max_cameras=9999,
        parse=partial(_parse_by_camera, rgbnt100.parse_name),
        number=lambda identity, camera, place, _: f"{identity}_c{camera:04d}_{place:03d}.jpg",
        queries=_every_fifth,
        paths=_path_of_strip,
        folders=("rgbir/bounding_box_train", "rgbir/bounding_box_test", "rgbir/query"),
    ),
    "msvr310": Layout(
        name="msvr310",
        kind="vehicle",
        size=(128, 256),
        strip=False,
        identity_digits=4,
        max_cameras=999,
        parse=_parse_msvr310,
        number=lambda identity, scene, place, index: f"{identity}_s{scene:03d}_v{place % NUM_VIEWS}_{index:03d}.jpg",
        queries=_seen_in_two_scenes,
        paths=_paths_by_identity,
        folders=("bounding_box_train", "bounding_box_test", "query3"),
    ),
    "wmveid863": Layout(
        name="wmveid863",
        kind="vehicle",
        size=(128, 256),
        strip=False,
        identity_digits=4,
        max_cameras=9,
        parse=_parse_wmveid863,
        number=_name_wmveid863,
        queries=_every_fifth,
        paths=_paths_by_identity,
        folders=("train", "test", "query"),
    ),
}


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        InputError: unknown name.
    """
    if name not in LAYOUTS:
        raise InputError(f"layout {name!r} is unknown; use one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def numbered_names(layout: Layout, *, first: int, num_ids: int, num_cameras: int, per_camera: int) -> Iterator[str]:
    """Names of a balanced split: identities from `first` on, cameras (MSVR310: scenes) from 1 on."""
    for number in range(first, first + num_ids):
        identity = f"{number:0{layout.identity_digits}d}"
        for camera in range(1, num_cameras + 1):
            for place in range(per_camera):
                yield layout.number(identity, camera, place, (camera - 1) * per_camera + place)


def parse_names(layout: Layout, names: Sequence[str], *, source: str) -> list[Shot]:
    """Shots of a list of names.

    Raises:
        DataError: a name is not valid or occurs twice, or there is no name.
    """
    example = layout.number("1".zfill(layout.identity_digits), 1, 0, 0)
    shots = []
    seen: set[str] = set()
    for line, name in enumerate(names, start=1):
        shot = layout.parse(name) if _is_plain(name, depth=example.count("/")) else None
        if shot is None:
            raise DataError(
                f"{source}, line {line}: '{printable(name, limit=60)}' is not a name of layout {layout.name}; "
                f"it must be like {example}"
            )
        stem = name.rpartition(".")[0].lower()  # readers identify it by this, on a disk that ignores case
        if stem in seen:
            raise DataError(f"{source}: {name} is listed twice; remove one")
        seen.add(stem)
        shots.append(shot)
    if not shots:
        raise DataError(f"{source}: it holds no names; give a list with one file name per line")
    return shots


def _is_plain(name: str, *, depth: int) -> bool:
    """Whether a listed name is that of an image and stays inside its folder."""
    try:
        inside(Path(), name)
    except InputError:
        return False
    return name.count("/") == depth and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def plan_items(layout: Layout, *, train: Sequence[Shot], test: Sequence[Shot]) -> list[Item]:
    """Every triplet of the tree with its files, train first; a test shot that is a query too has two targets.

    Raises:
        DataError: an identity in both splits.
    """
    both = {shot.identity for shot in train} & {shot.identity for shot in test}
    if both:
        raise DataError(f"identity {min(both)} is in the training and the test names; give disjoint lists")
    layout = _with_train_folder(layout, train)
    train_folder, gallery_folder, query_folder = layout.folders
    queries = set(range(len(test))) if layout.queries is None else layout.queries(test)
    items = [Item(shot, "train", False, (layout.paths(train_folder, shot),)) for shot in train]
    for number, shot in enumerate(test):
        is_query = number in queries
        folders = dict.fromkeys((gallery_folder, query_folder) if is_query else (gallery_folder,))
        items.append(Item(shot, "test", is_query, tuple(layout.paths(folder, shot) for folder in folders)))
    return items


def _with_train_folder(layout: Layout, train: Sequence[Shot]) -> Layout:
    """RGBNT201's training folder has the number of identities in its name; that name is used only if it is true."""
    if layout.name != "rgbnt201" or len({shot.identity for shot in train}) != TRAIN_IDENTITIES_RGBNT201:
        return layout
    return replace(layout, folders=("train_171", *layout.folders[1:]))
