"""Decoding ahead of the model: threads or processes read items while a batch is computed.

What is decoded and not yet computed is bounded, whatever the number of items: `PREFETCH` units of `UNIT` items for
each worker, and `AHEAD` batches.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from trireid.data.formats import quiet_decoders
from trireid.data.randomness import seeded_generator
from trireid.embedding.decoding import DecodedItems, ItemDecoder, join_decoded, only_files
from trireid.embedding.items import Item
from trireid.types import NUM_MODALITIES

_log = logging.getLogger(__name__)

T = TypeVar("T")
Numbered = tuple[int, Item]

UNIT = 32
"""Items that one worker decodes at a time."""
PREFETCH = 2
AHEAD = 2
"""Batches that may be ready beyond the one that the model computes."""
PROCESSES_FROM = 2048
"""Items of files from which on a GPU is served by processes: threads share one interpreter, and starting takes time."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoded_batches(
    items: Iterable[Item],
    decoder: ItemDecoder,
    *,
    batch_size: int,
    workers: int | None,
    device: torch.device,
    total: int | None,
) -> Iterator[DecodedItems]:
    """Batches of decoded items, in their order; for a CUDA device in page-locked memory.

    Args:
        items: any number of them; taken when they are needed.
        decoder: decodes one.
        batch_size: items of a batch; those that cannot be read leave it smaller.
        workers: threads or processes; None: as many as there are cores.
        device: that the batches are for.
        total: number of items, if known.
    """
    on_cuda = device.type == "cuda"
    workers = num_cores() if workers is None else workers
    numbered = enumerate(items)
    first = list(islice(numbered, batch_size))
    units = (unit for batch in in_parts(chain(first, numbered), batch_size) for unit in in_parts(batch, UNIT))
    many = total is not None and total >= PROCESSES_FROM and all(only_files(item.images) for _, item in first)
    if on_cuda and many and workers > 1 and _fits_shared_memory(decoder, workers):
        decoded = _by_processes(units, decoder, workers=workers)
    else:
        decoded = _by_threads(units, decoder, workers=workers, ahead=max(2 * workers, AHEAD * batch_size // UNIT))
    batches = _batches(decoded, batch_size, pin=on_cuda)
    with quiet_decoders():
        yield from _in_thread(batches) if on_cuda else batches


def _fits_shared_memory(decoder: ItemDecoder, workers: int) -> bool:
    """Whether the units of all workers fit the shared memory that they are passed through; containers have little."""
    height, width = decoder.image_size
    needed = 2 * PREFETCH * workers * UNIT * NUM_MODALITIES * 3 * height * width
    place = Path("/dev/shm")
    if not place.is_dir() or shutil.disk_usage(place).free >= needed:
        return True
    _log.warning(
        "%s has less than the %.0f MB that %d decoding processes need: threads decode, which is slower; give the "
        "container more shared memory, or use fewer workers",
        place,
        needed / 1e6,
        workers,
    )
    return False


def in_parts(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values, the last one shorter."""
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part


def _batches(units: Iterable[DecodedItems], batch_size: int, *, pin: bool) -> Iterator[DecodedItems]:
    """Join units, none of which crosses the end of a batch."""
    parts: list[DecodedItems] = []
    for unit in units:
        parts.append(unit)
        if sum(part.num_read for part in parts) >= batch_size:
            yield join_decoded(parts, pin=pin)
            parts = []
    if parts:
        yield join_decoded(parts, pin=pin)


def _by_threads(
    units: Iterable[list[Numbered]], decoder: ItemDecoder, *, workers: int, ahead: int
) -> Iterator[DecodedItems]:
    waiting: deque[Future[DecodedItems]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decoding") as pool:
        try:
            for unit in units:
                waiting.append(pool.submit(decoder.decode_all, unit))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Units(Dataset[DecodedItems]):
    """Decodes the units that a loader sends to its workers in place of indices."""

    def __init__(self, decoder: ItemDecoder) -> None:
        self.decoder = decoder

    def __getitem__(self, key: Any) -> DecodedItems:
        return self.decoder.decode_all([key])

    def __getitems__(self, keys: list[Numbered]) -> DecodedItems:
        """A whole unit at once."""
        return self.decoder.decode_all(keys)


def _by_processes(units: Iterable[list[Numbered]], decoder: ItemDecoder, *, workers: int) -> Iterator[DecodedItems]:
    loader: DataLoader[DecodedItems] = DataLoader(
        _Units(decoder),
        batch_sampler=units,
        num_workers=workers,
        prefetch_factor=PREFETCH,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_memory_shared,
        generator=seeded_generator(0, "workers"),  # the global one stays unchanged
    )
    return iter(loader)


def _as_it_is(unit: Any) -> Any:
    return unit


def _leave_memory_shared(_worker: int) -> None:
    """Keep the collector of a worker from touching, and so copying, the items of the main process."""
    gc.freeze()


def _in_thread(values: Iterator[T]) -> Iterator[T]:
    """The values of an iterator that runs in a thread of its own, `AHEAD` of them ahead."""
    end = object()
    waiting: deque[Future[T | object]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        try:
            waiting.extend(pool.submit(next, values, end) for _ in range(AHEAD))
            while (value := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, values, end))
                yield cast(T, value)
        finally:
            for future in waiting:
                future.cancel()
