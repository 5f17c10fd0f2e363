"""JPEG files of stated sizes that lie on the disk and not in the page cache, for benchmarks of reading."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

PROCESSES_FROM = 1000
"""Images from which on processes write them; each has to import the benchmark first."""

Task = tuple[Path, int, tuple[int, int]]
"""Where an image is written, the seed of its pixels, and its (height, width)."""


def write_image(task: Task) -> None:
    """A smooth pattern with noise, (height, width), of which JPEG needs about as many bytes as of a photograph."""
    path, seed, (height, width) = task
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = smooth + generator.integers(-12, 13, (height, width, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def write_images(tasks: Sequence[Task], *, workers: int) -> None:
    """Write all, many of them shared among processes; the folders are there."""
    if workers <= 1 or len(tasks) < PROCESSES_FROM:
        for task in tasks:
            write_image(task)
        return
    # Spawned, because a forked copy of a process with torch's threads may wait for them for ever.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(write_image, tasks, chunksize=64))


def forget(paths: Iterable[str | Path]) -> bool:
    """Ask the system to drop the files from its page cache; False where it has no such call."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in set(paths):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # what is not on the disk yet stays in the cache
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return True
