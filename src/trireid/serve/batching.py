"""Requests of several users are worked on together: a model and an engine take many at little more than one's cost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Generic, TypeVar

from trireid.errors import RunError, TrireidError

Entry = TypeVar("Entry")
Result = TypeVar("Result")


@dataclass
class _Waiting(Generic[Entry, Result]):
    entries: Sequence[Entry]
    group: Hashable
    result: asyncio.Future[Sequence[Result]]
    since: float = field(default_factory=perf_counter)


class Batcher(Generic[Entry, Result]):
    """Collects the entries of several callers for some milliseconds and works on them at once.

    While one batch is worked on the next one fills, so a busy service waits no further. An error that a user can cause
    stays with the request that caused it: the requests of such a batch are repeated one by one.

    Args:
        work: several entries of one group -> as many results; runs in `executor`.
        executor: with one thread, so that batches follow each other.
        most: entries of a batch; a request with more is a batch of its own.
        seconds: that the first request of a batch waits for others.
        observe: called with the number of entries and of seconds that the oldest request waited, for each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Entry], Hashable], Sequence[Result]],
        *,
        executor: Executor,
        most: int,
        seconds: float,
        observe: Callable[[int, float], None] = lambda entries, seconds: None,
    ) -> None:
        self._work = work
        self._executor = executor
        self._most = most
        self._seconds = seconds
        self._observe = observe
        self._waiting: deque[_Waiting[Entry, Result]] = deque()
        self._more = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, entries: Sequence[Entry], *, group: Hashable = None) -> Sequence[Result]:
        """The results of some entries; only entries of equal `group` come into one batch.

        Raises:
            TrireidError: of these entries.
        """
        waiting = _Waiting[Entry, Result](entries, group, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._more.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._run())
        return await waiting.result

    async def _run(self) -> None:
        while self._waiting:
            await self._fill()
            batch = self._take()
            if batch:
                self._observe(sum(len(each.entries) for each in batch), perf_counter() - batch[0].since)
                await self._answer(batch)

    async def _fill(self) -> None:
        """Wait until the batch of the oldest request is full, or that request has waited long enough."""
        until = self._waiting[0].since + self._seconds
        while (left := until - perf_counter()) > 0:
            group = self._waiting[0].group
            if sum(len(each.entries) for each in self._waiting if each.group == group) >= self._most:
                return
            self._more.clear()
            try:
                async with asyncio.timeout(left):
                    await self._more.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting[Entry, Result]]:
        """The oldest request and those of its group that fit into a batch with it."""
        batch: list[_Waiting[Entry, Result]] = []
        others: list[_Waiting[Entry, Result]] = []
        count = 0
        for each in self._waiting:
            if each.result.done():  # its client went away
                continue
            if not batch or (each.group == batch[0].group and count + len(each.entries) <= self._most):
                batch.append(each)
                count += len(each.entries)
            else:
                others.append(each)
        self._waiting = deque(others)
        return batch

    async def _answer(self, batch: list[_Waiting[Entry, Result]]) -> None:
        entries = [entry for each in batch for entry in each.entries]
        run = asyncio.get_running_loop().run_in_executor
        outcome = (
            await asyncio.gather(run(self._executor, self._work, entries, batch[0].group), return_exceptions=True)
        )[0]
        own = isinstance(outcome, TrireidError) and not isinstance(outcome, RunError)  # that is the engine's
        if own and len(batch) > 1:
            for each in batch:
                await self._answer([each])
            return
        start = 0
        for each in batch:
            if each.result.done():
                pass
            elif isinstance(outcome, BaseException):
                each.result.set_exception(outcome)
            else:
                each.result.set_result(outcome[start : start + len(each.entries)])
            start += len(each.entries)
