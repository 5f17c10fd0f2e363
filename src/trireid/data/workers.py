"""How many threads or processes decode ahead of whoever uses the pixels, and the threads; see `copies`, too."""

from __future__ import annotations

import logging
import os
import resource
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import psutil

from trireid.errors import ConfigError

_log = logging.getLogger(__name__)

Key = TypeVar("Key")
Result = TypeVar("Result")

FILES_PER_WORKER, SPARE_FILES = 5, 24
"""Open files of this process for each worker (pipes, batches in transit), and those that a run opens otherwise."""
MOST_WORKERS = 16
"""That are started without a setting: one reading process cannot pass on the images of more."""
PREFETCH = 2
"""Units for each process that are ready, in work or waiting."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(setting: int | None, *, num_processes: int = 1) -> int:
    """The workers of a setting; None: the cores of this process, at most `MOST_WORKERS`, shared by the processes."""
    return max(1, min(MOST_WORKERS, num_cores() // num_processes)) if setting is None else setting


def check_open_files(num_workers: int) -> None:
    """Refuse more workers than the limit of open files allows: torch would wait for them forever, or fail later.

    Raises:
        ConfigError: the limit of open files is too low.
    """
    needed, limit = _open_files(num_workers)
    if num_workers and limit is not None and needed > limit:
        raise ConfigError(
            f"data.workers={num_workers} needs about {needed} open files, and {limit} are allowed: use fewer, "
            "data.cache=memory, or allow more (ulimit -n)"
        )


def _open_files(num_workers: int) -> tuple[int, int | None]:
    """Open files that this process needs with this many workers, and those that it may have; None: any number."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = psutil.Process().num_fds() + num_workers * FILES_PER_WORKER + SPARE_FILES
    return needed, None if limit == resource.RLIM_INFINITY else limit


def processes_fit(unit_bytes: int, workers: int) -> bool:
    """Whether there are the open files and the shared memory that decoding processes need; a warning says what lacks.

    The results of all workers pass through shared memory, of which containers have little.

    Args:
        unit_bytes: of the tensors in a result.
        workers: number of processes.
    """
    needed, limit = _open_files(workers)
    if limit is not None and needed > limit:
        _log.warning(
            "%d decoding processes need about %d open files, and %d are allowed: threads decode, which is slower; "
            "allow more (ulimit -n), or use fewer workers",
            workers,
            needed,
            limit,
        )
        return False
    size = 2 * PREFETCH * workers * unit_bytes
    place = Path("/dev/shm")
    if not place.is_dir() or shutil.disk_usage(place).free >= size:
        return True
    _log.warning(
        "%s has less than the %.0f MB that %d decoding processes need: threads decode, which is slower; give the "
        "container more shared memory, or use fewer workers",
        place,
        size / 1e6,
        workers,
    )
    return False


def by_threads(
    units: Iterable[list[Key]], work: Callable[[list[Key]], Result], *, workers: int, ahead: int
) -> Iterator[Result]:
    """The results of units of work, in their order, from threads.

    Args:
        units: taken when they are needed.
        work: done by the threads.
        workers: number of threads.
        ahead: units that may be ready or waiting.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decoding") as pool:
        try:
            for unit in units:
                waiting.append(pool.submit(work, unit))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
