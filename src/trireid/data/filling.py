"""A cache of pixels that is filled while training already reads it: what the first batches need is decoded first."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Condition

import torch
from torch import Tensor

from trireid.data.formats import quiet_decoders
from trireid.data.pixels import decode_group, groups_of, log_turned, presence_of
from trireid.data.ranges import Ranges
from trireid.data.records import ImageFacts, Record
from trireid.data.workers import by_processes, by_threads, processes_fit
from trireid.names import Interpolation
from trireid.types import NUM_MODALITIES

_log = logging.getLogger(__name__)

UNIT = 16
"""Groups of triplets that a worker decodes at a time."""
PROCESSES_FROM = 512
"""Triplets from which on processes decode: threads share one interpreter with the training, and starting takes time."""
MOVED_AT_ONCE = 128
"""Triplets that a reading moves to the device beyond those that it needs, so that no single step waits for all."""

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
    """Pixels `(n, M, 3, H, W)` of some groups one after the other, and the files they come from."""

    keys: list[Key]
    pixels: Tensor
    files: dict[Path, ImageFacts]


@dataclass(frozen=True)
class _Work:
    """Decodes groups; it can be sent to other processes."""

    sets: list[_Set]

    def __call__(self, keys: list[Key]) -> _Decoded:
        files: dict[Path, ImageFacts] = {}
        images: list[Tensor] = []
        for number, group in keys:
            of = self.sets[number]
            shown = [of.records[position] for position in of.groups[group]]
            images += decode_group(shown, of.image_size, of.interpolation, of.ranges, files)
        return _Decoded(keys, torch.stack(images), files)


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
        self._files: dict[Path, ImageFacts] = {}
        self._closed = self._logged = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="filling")
        self._work: Future[None] | None = None
        self._started, self._seconds, self._num_stored = 0.0, 0.0, 0
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
        """The results of the workers."""
        work = _Work(self._sets)
        height, width = self._sets[0].image_size
        many = sum(len(each.records) for each in self._sets) >= PROCESSES_FROM
        unit_bytes = UNIT * NUM_MODALITIES * 3 * height * width
        self._processes = self._processes and many and self.workers > 1 and processes_fit(unit_bytes, self.workers)
        if self._processes:
            return by_processes(self._units(), work, workers=self.workers)
        return by_threads(self._units(), work, workers=self.workers, ahead=2 * self.workers)

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
                while len(unit) < UNIT and (self._urgent or self._todo):
                    key = (self._urgent or self._todo).popleft()
                    if key not in self._taken:
                        self._taken.add(key)
                        unit.append(key)
            if not unit:
                return
            yield unit

    def _store(self, decoded: _Decoded) -> None:
        start = 0
        for number, group in decoded.keys:
            target, positions = self._targets[number], self._sets[number].groups[group]
            for offset, position in enumerate(positions):
                target.host[position] = decoded.pixels[start + offset]
            start += len(positions)
        with self._changed:
            for number, group in decoded.keys:
                for position in self._sets[number].groups[group]:
                    self._targets[number].done[position] = True
            self._files.update(decoded.files)
            self._num_stored += start
            self._changed.notify_all()

    def _log_end(self) -> None:
        """Log once, in the thread of the training, that everything is decoded."""
        count = sum(len(each.records) for each in self._sets)
        if self._logged or self._num_stored < count:
            return
        self._logged = True
        log_turned(sum(facts.orientation != 1 for facts in self._files.values()), len(self._files))
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
        self.host = torch.empty(shape, dtype=torch.uint8)
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
            if not self.done[position]:
                self._to_move.append(position)
            elif not self._moved[position] and position not in chosen:
                chosen[position] = None
        if chosen:
            index = torch.tensor(list(chosen))
            rows = torch.empty(len(chosen), *self.host.shape[1:], dtype=torch.uint8, pin_memory=on_device.is_cuda)
            torch.index_select(self.host, 0, index, out=rows)
            on_device.index_copy_(0, _to_device(index, self.device), rows.to(self.device, non_blocking=True))
            for position in chosen:
                self._moved[position] = True
        if not self._to_move:
            self.host = self.host.new_empty(0)


def _to_device(index: Tensor, device: torch.device) -> Tensor:
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)
