"""Decoding ahead of the model: threads or processes read items while a batch is computed.

What is decoded and not yet computed is bounded, whatever the number of items: a few units of `UNIT` items for each
worker (`data.workers`), and `AHEAD` batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar, cast

import torch

from trireid.data.copies import by_copies
from trireid.data.formats import quiet_decoders
from trireid.data.workers import PREFETCH, by_threads, processes_fit
from trireid.data.workers import num_cores as num_cores
from trireid.embedding.decoding import DecodedItems, ItemDecoder, join_decoded, only_files
from trireid.embedding.items import Item
from trireid.types import NUM_MODALITIES

T = TypeVar("T")
Numbered = tuple[int, Item]

UNIT = 32
"""Items that one worker decodes at a time."""
AHEAD = 2
"""Batches that may be ready beyond the one that the model computes."""
PROCESSES_FROM = 2048
"""Items of files from which on a GPU is served by processes: threads share one interpreter, and starting takes time."""


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
    height, width = decoder.image_size
    unit_bytes = UNIT * NUM_MODALITIES * 3 * height * width
    if on_cuda and many and workers > 1 and processes_fit(unit_bytes, workers):
        decoded = by_copies(units, decoder.decode_all, workers=workers, ahead=PREFETCH * workers)
    else:
        ahead = max(2 * workers, AHEAD * batch_size // UNIT)
        decoded = by_threads(units, decoder.decode_all, workers=workers, ahead=ahead)
    batches = _batches(decoded, batch_size, pin=on_cuda)
    with quiet_decoders():
        yield from _in_thread(batches) if on_cuda else batches


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
