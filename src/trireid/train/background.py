"""Writes files in a thread while the run goes on, in an order that a kill at any moment cannot spoil."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from trireid.errors import RunError

_log = logging.getLogger(__name__)

Write = Callable[[], None]
"""Writes one or several files; it holds copies of what it writes."""


@dataclass
class _Job:
    """A writing that waits, runs or has ended; `write` is None once its copies are not needed any more."""

    write: Write | None
    replaceable: bool
    future: Future[None] = field(default_factory=Future)


class BackgroundWriter:
    """Runs writings one after the other in a thread; a context manager, at whose end everything is written.

    The order is that of the calls. Only a replaceable writing that has not begun and stands last gives way to the next
    replaceable one. After a writing that failed none begins: its error reaches the caller first.

    Example:
        >>> written = []
        >>> with BackgroundWriter() as writer:
        ...     for name in ("best", "state"):
        ...         writer.start(lambda name=name: written.append(name))
        >>> written
        ['best', 'state']
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._jobs: list[_Job] = []
        self._failed = False

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Wait for everything; where the block ends by another error, that of a writing is logged."""
        try:
            self.wait()
        except RunError as failed:
            if error is None:
                raise
            _log.error("%s", failed)
        finally:
            self._thread.shutdown()

    def start(self, write: Write, *, replaceable: bool = False) -> None:
        """Write after all that was started before; waits for nothing.

        Args:
            write: must not change once it is given.
            replaceable: only the newest of these matters; one that waits as the last gives way to this one.

        Raises:
            RunError: An earlier writing failed.
        """
        self.check()
        last = self._jobs[-1] if self._jobs else None
        if replaceable and last is not None and last.replaceable and last.future.cancel():
            self._jobs.pop().write = None  # the thread's queue still holds the job
        job = _Job(write, replaceable)
        job.future = self._thread.submit(self._run, job)
        self._jobs.append(job)

    def check(self) -> None:
        """Raise the error of a writing that has failed; waits for nothing.

        Raises:
            RunError: It could not be written.
        """
        ended = [job for job in self._jobs if job.future.done()]
        self._jobs = [job for job in self._jobs if not job.future.done()]
        for job in ended:
            job.future.result()

    def wait(self, *, replaceable: bool = True) -> None:
        """Wait until everything is on the disk.

        Args:
            replaceable: False: wait only for the last writing that is not replaceable, and for those before it.

        Raises:
            RunError: It could not be written.
        """
        required = [number for number, job in enumerate(self._jobs) if replaceable or not job.replaceable]
        for job in self._jobs[: required[-1] + 1 if required else 0]:
            job.future.exception()
        self.check()

    def _run(self, job: _Job) -> None:
        write, job.write = job.write, None
        if self._failed or write is None:
            return
        self._failed = True  # and stays so where the next line raises
        write()
        self._failed = False
