"""A cache of pixels that is filled while training already reads it: what the first batches need is decoded first."""

from __future__ import annotations

import logging
import math
import mmap
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Condition

import numpy as np
import torch
from torch import Tensor

from trireid.data.copies import by_copies
from trireid.data.formats import quiet_decoders
from trireid.data.pixels import decode_group, groups_of, log_turned, presence_of
from trireid.data.ranges import Ranges
from trireid.data.records import ImageFacts, Record
from trireid.data.workers import PREFETCH, by_threads, processes_fit
from trireid.names import Interpolation
from trireid.types import NUM_MODALITIES

_log = logging.getLogger(__name__)

UNIT, UNIT_SECONDS = 32, 0.05
"""Groups of triplets that a worker decodes at a time: this many at most, and no more than take it about this long.

The first batches, and the last ones, then wait for a short unit only, however large the images are.
"""
PROCESSES_FROM = 512
"""Triplets from which on processes decode: threads share one interpreter with the training, and starting takes time."""
MOVED_AT_ONCE = 64
"""Triplets that a reading moves to the device, or those that it needs if they are more: the step waits for the copy."""

Key = tuple[int, int]
"""Number of a set, and of a group in it."""


@dataclass(frozen=True)
class _Set:
    """What a worker needs to decode a set; `groups` are positions, see `groups_of`."""

    records: Sequence[Record]
    groups: list[list[int]]
    image_size: tuple[int, int]
    interpolation: Interpolation
    ranges: Ranges


@dataclass(frozen=True)
class _Decoded:
    """The groups whose pixels are written, those of their files that were turned upright, and the time it took."""

    keys: list[Key]
    turned: set[Path]
    seconds: float


@dataclass(frozen=True)
class _Work:
    """Decodes groups into `pixels`, which threads and copies of this process share: no pixels are sent."""

    sets: list[_Set]
    pixels: list[Tensor]

    def __call__(self, keys: list[Key]) -> _Decoded:
        started = time.perf_counter()
        files: dict[Path, ImageFacts] = {}
        for number, group in keys:
            of = self.sets[number]
            positions = of.groups[group]
            shown = [of.records[position] for position in positions]
            decoded = decode_group(shown, of.image_size, of.interpolation, of.ranges, files)
            for position, image in zip(positions, decoded, strict=True):
                self.pixels[number][position] = image
        turned = {path for path, facts in files.items() if facts.orientation != 1}
        return _Decoded(keys, turned, time.perf_counter() - started)


class Filler:
    """Decodes the sets of a run in the background, one after the other, with workers that they share.

    Add the sets, then `start`; `close` ends it early. All methods are for one thread, that of the training.

    Args:
        workers: threads or processes that decode.
        processes: allow processes, which do not hold up the interpreter of the training.
    """

    def __init__(self, *, workers: int, processes: bool = True) -> None:
        self.workers, self._processes = max(1, workers), processes
        self._sets: list[_Set] = []
        self._targets: list[FillingPixels] = []
        self._changed = Condition()
        self._todo: deque[Key] = deque()
        self._urgent: deque[Key] = deque()
        self._taken: set[Key] = set()
        self._turned: set[Path] = set()
        self._closed = self._logged = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="filling")
        self._work: Future[None] | None = None
        self._started, self._seconds, self._num_stored = 0.0, 0.0, 0
        self._unit = 1  # until it is known how long a group takes
        self._group_seconds, self._num_groups = 0.0, 0
        self._quiet = ExitStack()

    def add(
        self,
        records: Sequence[Record],
        *,
        image_size: tuple[int, int],
        interpolation: Interpolation,
        ranges: Ranges,
        device: torch.device,
    ) -> FillingPixels:
        """The pixels of a set, which can be read once the filler is started; arguments as those of `open_pixels`."""
        groups = groups_of(records)
        self._sets.append(_Set(records, groups, image_size, interpolation, ranges))
        target = FillingPixels(self, len(self._targets), records, image_size=image_size, device=device, groups=groups)
        self._targets.append(target)
        return target

    def start(self, first: Sequence[int] = ()) -> None:
        """Begin to decode.

        Args:
            first: positions of the first set, in the order in which they will be read.
        """
        if not self._targets:
            return
        ordered = [(0, self._targets[0].group_of[position]) for position in first]
        rest = [(number, group) for number, each in enumerate(self._sets) for group in range(len(each.groups))]
        self._todo.extend(dict.fromkeys([*ordered, *rest]))
        self._started = time.perf_counter()
        self._quiet.enter_context(quiet_decoders())
        # Processes begin here, in the thread of the training: a copy of this process that is made while that thread is
        # in the middle of something else, such as an import, could wait for ever for it.
        results = self._begin()
        self._work = self._thread.submit(self._fill, results)
        self._work.add_done_callback(self._wake)

    def close(self) -> None:
        """Stop decoding, and wait until no thread or process of it is left."""
        self._closed = True
        self._thread.shutdown()
        self._log_end()
        self._quiet.close()

    def wait_for(self, target: FillingPixels, positions: Sequence[int]) -> None:
        """Wait until triplets of a set are decoded; those that are not are the next to be.

        Raises:
            ImageError: an image of any of the sets cannot be read.
            DataError: a process that decodes was ended from outside.
            RuntimeError: the filler was not started, or is closed.
        """
        if self._work is None:
            raise RuntimeError("the pixels are read before their filler was started")
        with self._changed:
            missing = [position for position in positions if not target.done[position]]
            self._urgent.extend((target.number, target.group_of[position]) for position in missing)
            self._changed.wait_for(lambda: self._ended or all(target.done[position] for position in missing))
        self._log_end()
        if self._ended:
            self._work.result()
            if not all(target.done[position] for position in missing):
                raise RuntimeError("the pixels are read after their filler was closed")

    def _wake(self, _work: Future[None]) -> None:
        with self._changed:
            self._changed.notify_all()

    @property
    def _ended(self) -> bool:
        return self._work is not None and self._work.done()

    def _begin(self) -> Iterator[_Decoded]:
        """The results of the workers; nothing here keeps the memory of a set once it has moved to the device."""
        work = _Work(self._sets, [target.host for target in self._targets])
        many = sum(len(each.records) for each in self._sets) >= PROCESSES_FROM
        forks = sys.platform == "linux"  # elsewhere a fork is missing, or unsafe beside other threads
        self._processes = self._processes and forks and many and self.workers > 1 and processes_fit(0, self.workers)
        ahead = PREFETCH * self.workers
        if self._processes:
            return by_copies(self._units(), work, workers=self.workers, ahead=ahead, background=True)
        return by_threads(self._units(), work, workers=self.workers, ahead=ahead)

    def _fill(self, results: Iterator[_Decoded]) -> None:
        """Store what the workers decode, unit by unit, in a thread of its own."""
        for decoded in results:
            self._store(decoded)
            self._seconds = time.perf_counter() - self._started

    def _units(self) -> Iterator[list[Key]]:
        """Groups that nobody has taken yet, the urgent ones first."""
        while not self._closed:
            unit: list[Key] = []
            with self._changed:
                while len(unit) < self._unit and (self._urgent or self._todo):
                    key = (self._urgent or self._todo).popleft()
                    if key not in self._taken:
                        self._taken.add(key)
                        unit.append(key)
            if not unit:
                return
            yield unit

    def _store(self, decoded: _Decoded) -> None:
        """Note what can be read now, and how long units should be."""
        self._group_seconds += decoded.seconds
        self._num_groups += len(decoded.keys)
        fitting = UNIT_SECONDS * self._num_groups / max(self._group_seconds, 1e-9)
        with self._changed:
            for number, group in decoded.keys:
                positions = self._sets[number].groups[group]
                for position in positions:
                    self._targets[number].done[position] = True
                self._num_stored += len(positions)
            self._turned |= decoded.turned
            self._unit = max(1, min(UNIT, math.floor(fitting)))
            self._changed.notify_all()

    def _log_end(self) -> None:
        """Log once, in the thread of the training, that everything is decoded."""
        count = sum(len(each.records) for each in self._sets)
        if self._logged or self._num_stored < count:
            return
        self._logged = True
        if self._turned:
            images = chain.from_iterable(record.images for each in self._sets for record in each.records)
            log_turned(len(self._turned), len({source.path for source in images if source is not None}))
        _log.info(
            "%d triplets decoded by %d %s in %.1f s, %.0f triplets/s, while training began",
            count,
            self.workers,
            "processes" if self._processes else "threads",
            self._seconds,
            count / max(self._seconds, 1e-9),
        )


class FillingPixels:
    """The pixels of one set of a `Filler`; `read` waits for those that it needs.

    Attributes:
        number: of the set.
        host: `(n, M, 3, H, W)` uint8, filled by the filler; empty once all of it is on the device.
        done: of each triplet, whether it is filled.
        group_of: of each triplet, its group.
    """

    def __init__(
        self,
        filler: Filler,
        number: int,
        records: Sequence[Record],
        *,
        image_size: tuple[int, int],
        device: torch.device,
        groups: list[list[int]],
    ) -> None:
        self._filler, self.number, self.device = filler, number, device
        shape = (len(records), NUM_MODALITIES, 3, *image_size)
        self.host = _shared(shape)
        self.present = presence_of(records)
        self.done = [False] * len(records)
        self.group_of = [0] * len(records)
        for group, positions in enumerate(groups):
            for position in positions:
                self.group_of[position] = group
        self._moved = [False] * len(records)
        self._to_move: deque[int] = deque(range(len(records)))
        self._on_device = None if device.type == "cpu" else torch.empty(shape, dtype=torch.uint8, device=device)

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `Pixels`; the pixels are on the device of the cache.

        Raises:
            ImageError: an image of any set of the filler cannot be read.
            DataError: a process that decodes was ended from outside.
        """
        index = torch.tensor(positions)
        present = self.present[index]
        if self._on_device is None or self._to_move:
            self._filler.wait_for(self, positions)
        if self._on_device is None:
            return self.host[index], present
        if self._to_move:
            self._move(positions, self._on_device)
        return self._on_device[_to_device(index, self.device)], present

    def _move(self, positions: Sequence[int], on_device: Tensor) -> None:
        """Move these triplets to the device, and some others that are ready; no step waits for the device."""
        chosen = {position: None for position in positions if not self._moved[position]}
        for _ in range(min(MOVED_AT_ONCE, len(self._to_move))):
            position = self._to_move.popleft()
            if self._moved[position] or position in chosen:
                continue
            if self.done[position] and len(chosen) < MOVED_AT_ONCE:
                chosen[position] = None
            else:
                self._to_move.append(position)
        if chosen:
            index = torch.tensor(list(chosen))
            rows = torch.empty(len(chosen), *self.host.shape[1:], dtype=torch.uint8, pin_memory=on_device.is_cuda)
            # By this thread alone: torch's would wait for cores that decode. "clip" keeps NumPy from a copy of its own.
            np.take(self.host.numpy(), index.numpy(), axis=0, out=rows.numpy(), mode="clip")
            on_device.index_copy_(0, _to_device(index, self.device), rows.to(self.device, non_blocking=True))
            for position in chosen:
                self._moved[position] = True
        if not self._to_move:
            self.host = self.host.new_empty(0)


def _shared(shape: tuple[int, ...]) -> Tensor:
    """Memory of uint8 that copies of this process write to as well; it takes no room in /dev/shm."""
    size = math.prod(shape)
    return torch.frombuffer(mmap.mmap(-1, max(1, size)), dtype=torch.uint8)[:size].view(shape)


def _to_device(index: Tensor, device: torch.device) -> Tensor:
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)
