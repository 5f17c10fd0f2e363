"""Writes a planned tree: beside the target first, then renamed, so that no half of it is ever taken for a whole."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from trireid.data.synthetic.identities import Appearance
from trireid.data.synthetic.layouts import Item
from trireid.data.synthetic.plan import Plan, RenderSettings, make_plan
from trireid.data.synthetic.render import Pixels, render_triplet
from trireid.errors import DataError, InputError
from trireid.files import inside, real_path

JPEG_QUALITY = 95
CHUNK = 32
"""Triplets in one order to a worker."""
DESCRIPTION = "synthetic.json"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SplitCount:
    """Triplets and identities of one split."""

    triplets: int
    identities: int


@dataclass(frozen=True)
class SyntheticSummary:
    """What was written where; `splits` has the keys train, query and gallery."""

    root: Path
    layout: str
    splits: dict[str, SplitCount]


def encode_jpeg(image: Pixels) -> bytes:
    """JPEG bytes of `(h, w, 3)` uint8, without loss of colour resolution so that grey stays grey."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def write_file(path: Path, content: bytes) -> None:
    """Write one image file (its folder exists already, the file does not)."""
    with path.open("xb") as file:
        file.write(content)


@dataclass(frozen=True)
class Order:
    """Some triplets to write, with all that it takes: what travels to a worker process."""

    root: Path
    settings: RenderSettings
    items: list[Item]
    appearances: list[Appearance]


def fill_order(order: Order) -> int:
    """Render and write the triplets of one order; returns their number."""
    settings = order.settings
    for item, appearance in zip(order.items, order.appearances, strict=True):
        images = render_triplet(
            appearance,
            item.shot,
            kind=settings.kind,
            size=settings.size,
            difficulty=settings.difficulty,
            seed=settings.seed,
        )  # (3, h, w, 3)
        files = [np.concatenate(list(images), axis=1)] if settings.strip else list(images)
        encoded = [encode_jpeg(image) for image in files]
        for target in item.targets:
            for path, content in zip(target, encoded, strict=True):
                write_file(inside(order.root, str(path)), content)
    return len(order.items)


def _orders(root: Path, plan: Plan) -> list[Order]:
    chunks = [plan.items[first : first + CHUNK] for first in range(0, len(plan.items), CHUNK)]
    return [
        Order(root, plan.settings, chunk, [plan.appearances[item.split][item.shot.identity] for item in chunk])
        for chunk in chunks
    ]


def _filled(orders: list[Order], workers: int) -> Iterator[int]:
    """Counts of written triplets, one an order, in the order of completion."""
    if workers == 0:
        yield from map(fill_order, orders)
        return
    # Spawned, because a forked copy of a process that runs threads (torch's, for one) may hang.
    with ProcessPoolExecutor(min(workers, max(len(orders), 1)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(fill_order, order) for order in orders]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write_images(root: Path, plan: Plan, *, workers: int, progress: Progress | None) -> None:
    """Write every image of a plan under an existing root; `progress` gets (done, total) triplets."""
    folders = {inside(root, str(path)).parent for item in plan.items for target in item.targets for path in target}
    for folder in sorted(folders):
        folder.mkdir(parents=True, exist_ok=True)
    done = 0
    for count in _filled(_orders(root, plan), workers):
        done += count
        if progress is not None:
            progress(done, len(plan.items))


def _count(items: list[Item]) -> SplitCount:
    return SplitCount(len(items), len({item.shot.identity for item in items}))


def count_splits(plan: Plan) -> dict[str, SplitCount]:
    """Triplets and identities of train, query and gallery."""
    return {
        "train": _count([item for item in plan.items if item.split == "train"]),
        "query": _count([item for item in plan.items if item.is_query]),
        "gallery": _count([item for item in plan.items if item.split == "test"]),
    }


def describe(plan: Plan) -> str:
    """The set's own description as JSON: how it was made, and which look each identity has in each spectrum."""
    settings = plan.settings
    content = {
        "layout": plan.layout,
        "difficulty": settings.difficulty.name,
        "seed": settings.seed,
        "image_size": list(settings.size),
        "splits": {name: vars(count) for name, count in count_splits(plan).items()},
        "identities": {
            split: {name: vars(appearance) for name, appearance in sorted(appearances.items())}
            for split, appearances in plan.appearances.items()
        },
    }
    return json.dumps(content, indent=1) + "\n"


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends well, and is removed when it does not.

    Raises:
        DataError: `out` exists and is no empty folder, or the disk refuses.
    """
    out = real_path(out)  # a name of its own also for "."
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is no empty folder; give another folder, or remove it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            tree = Path(temporary, "tree")
            tree.mkdir()  # not the temporary folder itself, which no other user may read
            yield tree
            if out.exists():
                out.rmdir()
            tree.rename(out)
    except BrokenProcessPool as error:
        raise DataError(f"{out}: a worker process died, nothing was written; use fewer workers, or 0") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{out} cannot be written ({reason}), nothing was left; free space or give another folder"
        ) from error


def write_synthetic(
    out: Path,
    *,
    layout: str,
    names: Sequence[Path] | None = None,
    num_ids: int | None = None,
    num_cameras: int | None = None,
    per_camera: int | None = None,
    difficulty: str = "easy",
    seed: int = 0,
    workers: int = 0,
    image_size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> SyntheticSummary:
    """Write a synthetic tri-modal set in one of the published layouts.

    Equal arguments give equal bytes, whatever the number of workers. A triplet depends on seed, difficulty, image
    size, what its identity looks like, and its own name, identity and camera.

    Args:
        out: folder to make; it must not exist or be empty.
        layout: `rgbnt201` (persons), `rgbnt100`, `msvr310` or `wmveid863` (vehicles).
        names: name lists, files `..._train.txt` and / or `..._test.txt` with one file name per line (WMVeID863:
            `<id>/<name>`), or a folder with `<LAYOUT>_train.txt` and `<LAYOUT>_test.txt`. The tree has exactly these
            names; a split without a list is empty. Not together with the next three.
        num_ids: training identities, numbered from 1; as many test identities follow (24).
        num_cameras: cameras that see each identity, scenes for `msvr310` (2).
        per_camera: triplets of each identity at each camera (4).
        difficulty: `easy` or `hard`.
        seed: any whole number.
        workers: processes; 0 works in this one.
        image_size: (height, width), the layout's own if None.
        progress: called with (done, total) triplets.

    Queries: RGBNT201 all test triplets; RGBNT100 and WMVeID863 every fifth of each test identity, from its first on;
    MSVR310 all of the identities that were seen in two or more scenes.

    Raises:
        InputError: an argument that is not allowed.
        DataError: a name list that does not fit the layout, or a target that is not empty or cannot be written.
    """
    if workers < 0:
        raise InputError(f"{workers} workers: give 0 (this process alone) or more")
    plan = make_plan(
        layout=layout,
        names=names,
        num_ids=num_ids,
        num_cameras=num_cameras,
        per_camera=per_camera,
        difficulty=difficulty,
        seed=seed,
        image_size=image_size,
    )
    with beside(out) as tree:
        write_images(tree, plan, workers=workers, progress=progress)
        (tree / DESCRIPTION).write_text(describe(plan), encoding="utf-8")
    return SyntheticSummary(out, layout, count_splits(plan))
