"""A file of decoded pixels that runs share, with one checksum per triplet. It is written completely or not at all.

The pixels come first, then the checksums. If the length or a checksum is wrong, the images are decoded again.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trireid.files import replacing

_log = logging.getLogger(__name__)

SUFFIX = ".uint8"
_ADVICE = "choose another folder with data.cache_folder=..."
_CHECKSUM = np.dtype("<u4")


def open_cache_file(path: Path, shape: Sequence[int], fill: Callable[[Tensor], None]) -> tuple[Tensor, bool]:
    """Open a cache file, and fill it first if it is missing or damaged.

    Args:
        path: cache file; its folder may hold other cache files.
        shape: of the pixels; the first axis is the triplets.
        fill: called with the tensor that it must fill.

    Returns:
        The pixels, uint8 of this shape, mapped from the file; and whether an earlier run had filled it.

    Raises:
        RunError: the folder cannot be written or the disk is full.
    """
    size = math.prod(shape)
    if _is_whole(path, shape):
        return _map_file(path, shape, shared=False), True
    with _filling(path.parent), replacing(path, advice=_ADVICE) as temporary:
        _reserve(temporary, size + shape[0] * _CHECKSUM.itemsize)
        pixels = _map_file(temporary, shape, shared=True)
        fill(pixels)
        with temporary.open("r+b") as file:
            file.seek(size)
            file.write(_checksums(pixels).tobytes())
            file.flush()
            os.fsync(file.fileno())  # a power cut after the renaming must not leave zeros under the name
    return _map_file(path, shape, shared=False), False


def _is_whole(path: Path, shape: Sequence[int]) -> bool:
    """Whether the file exists and is intact; damage is logged."""
    size = math.prod(shape)
    if not path.is_file() or path.stat().st_size != size + shape[0] * _CHECKSUM.itemsize:
        return False
    with path.open("rb") as file:
        file.seek(size)
        expected = np.frombuffer(file.read(), dtype=_CHECKSUM)
    wrong = int((_checksums(_map_file(path, shape, shared=False)) != expected).sum())
    if wrong:
        _log.warning("%s is damaged (%d of %d triplets): all are decoded again", path, wrong, shape[0])
    return wrong == 0


def _checksums(pixels: Tensor) -> NDArray[np.uint32]:
    """CRC-32 of each triplet."""
    array = pixels.numpy().reshape(len(pixels), -1)
    with ThreadPoolExecutor() as pool:  # zlib releases the GIL
        return np.fromiter(pool.map(zlib.crc32, array), dtype=_CHECKSUM, count=len(array))


@contextmanager
def _filling(folder: Path) -> Iterator[None]:
    """Remove the temporary files of killed processes, and protect the one of this process from removal.

    Every process that fills a cache holds a shared lock on the folder. A process that gets an exclusive lock knows
    that no temporary file is in use.
    """
    with suppress(OSError):  # `replacing` reports a folder that cannot be created
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY) if folder.is_dir() else None
    try:
        if descriptor is not None:
            with suppress(OSError):  # in use, or a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for leftover in folder.glob(f".*{SUFFIX}.*.tmp"):
                    leftover.unlink(missing_ok=True)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _reserve(path: Path, size: int) -> None:
    """Reserve disk space for a file.

    Otherwise writing to the mapped file would kill the process (SIGBUS) on a full disk instead of raising an error.
    """
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _map_file(path: Path, shape: Sequence[int], *, shared: bool) -> Tensor:
    return torch.from_file(str(path), shared=shared, size=math.prod(shape), dtype=torch.uint8).view(*shape)
