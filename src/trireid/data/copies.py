"""Copies of this process that work for it and share its memory; one that is killed is reported at once."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch

from trireid.errors import DataError

Key = TypeVar("Key")
Result = TypeVar("Result")

NICENESS = 5
"""By which copies in the background give way to the training, whose steps would wait for a core otherwise."""
_WORK: list[Callable[[list[Any]], Any]] = []  # of this process, if it is a copy


def by_copies(
    units: Iterable[list[Key]],
    work: Callable[[list[Key]], Result],
    *,
    workers: int,
    ahead: int,
    background: bool = False,
) -> Iterator[Result]:
    """The results of units of work, in their order, from copies of this process (Linux only).

    The copies exist when this returns. They share the memory of this process that is shared memory, and end with it.

    Args:
        units: taken when they are needed.
        work: done by the copies; it is not sent to them.
        workers: number of copies.
        ahead: units that may be ready, in work or waiting.
        background: the copies have a lower priority, and a result does not wait for those before it.

    Raises:
        DataError: by the iterator, too: a copy was ended from outside.
        OSError: a copy cannot be made.
    """
    initial = (work, NICENESS if background else 0)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=_begin, initargs=initial)
    results = SimpleQueue[Future[Result]]()

    def submit(unit: list[Key]) -> None:
        future = pool.submit(_do, unit)
        if background:
            future.add_done_callback(results.put)
        else:
            results.put(future)

    rest, others = iter(units), set(active_children())
    try:
        with _kills_reported():
            waiting = _count(map(submit, islice(rest, ahead)))
    except OSError:
        for copy in set(active_children()) - others:  # the pool forgets those that it has made
            copy.terminate()
        raise

    def remaining(waiting: int) -> Iterator[Result]:
        try:
            while waiting:
                with _kills_reported():
                    result = results.get().result()
                    waiting += _count(map(submit, islice(rest, 1))) - 1
                yield result
        finally:
            pool.shutdown(cancel_futures=True)

    return remaining(waiting)


def _count(values: Iterable[object]) -> int:
    return sum(1 for _ in values)


@contextmanager
def _kills_reported() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise DataError(
            "a process that reads images was ended from outside, perhaps because memory ran out: use fewer data.workers"
        ) from error


def _begin(work: Callable[[list[Any]], Any], niceness: int) -> None:
    """Make a copy ready for work; interrupts are for the process that it is of."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    gc.freeze()  # the collector would touch, and so copy, all memory that was there before
    os.nice(niceness)
    torch.set_num_threads(1)  # others do not exist in a copy, and would be waited for
    _WORK.append(work)


def _do(unit: list[Any]) -> Any:
    return _WORK[0](unit)


def end_with_parent() -> None:
    """End this worker when its parent is killed; it would otherwise wait for work for ever."""
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
