"""Write a planned tree to a hidden folder beside the target, then rename it: the target is never half-written."""

from __future__ import annotations

import fcntl
import glob
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from trireid.data.copies import end_with_parent
from trireid.data.images import Progress
from trireid.data.synthetic.identities import Appearance
from trireid.data.synthetic.layouts import Item
from trireid.data.synthetic.plan import Plan, RenderSettings, make_plan
from trireid.data.synthetic.render import Pixels, render_triplet
from trireid.errors import DataError, InputError, printable
from trireid.files import inside, real_path

JPEG_QUALITY = 95
CHUNK = 32
"""Triplets per task of a worker."""
MAX_WORKERS = 256
DESCRIPTION = "synthetic.json"
UNFINISHED = ".unfinished"
"""Ending of the hidden folder that a tree is written to."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitCount:
    """Triplets and identities of one split."""

    triplets: int
    identities: int


@dataclass(frozen=True)
class SyntheticSummary:
    """What was written: the folder, its layout and the counts of train, query and gallery.

    Queries are, in RGBNT201, all test triplets; in RGBNT100 and WMVeID863, every fifth triplet of each test identity,
    starting with its first; in MSVR310, all triplets of the identities that were seen in two or more scenes.
    """

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
    """Some triplets to write, with all that a worker process needs for them."""

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
    """Number of written triplets of each order, in the order of completion."""
    if workers == 0:
        yield from map(fill_order, orders)
        return
    # Spawned, because a forked copy of a process with threads (such as torch's) may hang.
    num_workers = min(workers, max(len(orders), 1))
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
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
    """Description of the set as JSON: how it was made, and which look each identity has in each spectrum."""
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
    """A folder beside `out` that is renamed to `out` if the block succeeds, and removed if it fails.

    Unfinished folders of runs that were killed are removed first.

    Raises:
        DataError: `out` exists and is not an empty folder, or it cannot be written.
    """
    out = real_path(out)  # gives "." a name, too
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; give another folder, or remove it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(out)
        temporary = tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=UNFINISHED, dir=out.parent)
        with temporary, _locked(Path(temporary.name)):
            tree = Path(temporary.name, "tree")
            tree.mkdir()  # not the temporary folder itself, which other users cannot read
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


def _remove_unfinished(out: Path) -> None:
    """Remove what killed runs left beside `out`: folders that no process has locked."""
    for leftover in sorted(out.parent.glob(f".{glob.escape(out.name)}.*{UNFINISHED}")):
        with suppress(OSError), _locked(leftover, needed=True):
            shutil.rmtree(leftover)
            _log.warning("removed %s, which an earlier run left when it was killed", printable(str(leftover)))


@contextmanager
def _locked(folder: Path, *, needed: bool = False) -> Iterator[None]:
    """Lock a folder while the block runs; the system releases the lock of a killed process.

    Raises:
        OSError: another process has the lock, or, if it is `needed`, the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if needed:
                raise
        yield
    finally:
        os.close(descriptor)


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

    Equal arguments give equal bytes, for any number of workers. A triplet depends on seed, difficulty, image size, the
    appearance of its identity, and its own name, identity and camera.

    Args:
        out: folder to write; it must be empty or not exist.
        layout: `rgbnt201` (persons), `rgbnt100`, `msvr310` or `wmveid863` (vehicles).
        names: name lists, files `..._train.txt` and / or `..._test.txt` with one file name per line (WMVeID863:
            `<id>/<name>`), or a folder with `<LAYOUT>_train.txt` and `<LAYOUT>_test.txt`. The tree has exactly these
            names; a split without a list is empty. Cannot be combined with the next three.
        num_ids: training identities, numbered from 1; as many test identities follow (24).
        num_cameras: cameras that see each identity, scenes for `msvr310` (2).
        per_camera: triplets of each identity at each camera (4).
        difficulty: `easy` or `hard`.
        seed: any whole number.
        workers: worker processes, at most 256; 0: this process alone.
        image_size: (height, width); None: the size of the layout.
        progress: called with (done, total) triplets.

    Raises:
        InputError: an argument is not allowed.
        DataError: a name list does not fit the layout, or the target is not empty or cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summary = write_synthetic(Path(folder, "set"), layout="msvr310", num_ids=2, image_size=(16, 32))
        >>> summary.splits["train"]
        SplitCount(triplets=16, identities=2)
    """
    if not 0 <= workers <= MAX_WORKERS:
        raise InputError(f"{workers} workers: give 0 (this process alone) to {MAX_WORKERS}")
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
