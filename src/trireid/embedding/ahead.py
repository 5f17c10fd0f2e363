"""Decoding ahead of the model: items are read by threads while a batch is computed, a few batches at most."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

from trireid.data.formats import quiet_decoders
from trireid.embedding.decoding import DecodedItems, ItemDecoder, join_decoded
from trireid.embedding.items import Item

T = TypeVar("T")

UNIT = 16
"""Items that one worker decodes at a time."""
AHEAD = 2
"""Batches that may be decoded beyond the one that the model computes."""


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
    """Batches of decoded items, in their order."""
    workers = num_cores() if workers is None else workers
    with quiet_decoders(), ThreadPoolExecutor(workers, thread_name_prefix="decoding") as pool:
        waiting: deque[list[Future[DecodedItems]]] = deque()
        try:
            for batch in in_parts(enumerate(items), batch_size):
                waiting.append([pool.submit(decoder.decode_all, unit) for unit in in_parts(batch, UNIT)])
                if len(waiting) > AHEAD:
                    yield _joined(waiting.popleft())
            while waiting:
                yield _joined(waiting.popleft())
        finally:
            for futures in waiting:
                for future in futures:
                    future.cancel()


def _joined(futures: list[Future[DecodedItems]]) -> DecodedItems:
    return join_decoded([future.result() for future in futures])


def in_parts(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values, the last one shorter."""
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part
