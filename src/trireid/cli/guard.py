"""Mistakes of the user end in one clear line on the error stream and exit code 2, never in a traceback."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trireid.cli.wording import in_words_of_command
from trireid.errors import TrireidError, printable_lines

USER_ERROR = 2
_LONGEST_LINE = 2000  # characters; names and paths may be of any length
INTERRUPTED = 130

# System errors that a user can mend; any other OSError is a bug and keeps its traceback.
_ADVICE = {
    errno.ENOSPC: "free some space there, or choose another folder",
    errno.EDQUOT: "free some space there, or choose another folder",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOTDIR: "a file stands where a folder should be; choose another place",
    errno.EISDIR: "a folder stands where a file should be; choose another place",
    errno.ELOOP: "a symbolic link leads to itself; give the file or folder that is meant",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "use fewer data.workers, or allow more open files (ulimit -n)",
    errno.ENFILE: "use fewer data.workers, or end other programs",
    errno.ENOMEM: "use fewer data.workers or a smaller data.batch_size, or end other programs",
    errno.EAGAIN: "use fewer data.workers, or allow more processes (ulimit -u)",
}

_FULL_GPU = (
    "the memory of the GPU is full: use a smaller data.batch_size or evaluate.batch_size, or "
    "train.recompute_blocks=true, or end other programs that use it"
)

# Words by which libraries report that a resource is used up; they have no exception classes for it.
_SHORTAGES = {
    "Too many open files": "too many open files: use fewer data.workers, or allow more (ulimit -n)",
    "ancdata": "too many open files: use fewer data.workers, or allow more (ulimit -n)",
    "can't start new thread": "no further thread can be started: use fewer data.workers, or allow more (ulimit -u, -v)",
    "CUDA out of memory": _FULL_GPU,
    "CUDA error: out of memory": _FULL_GPU,
    "is killed by signal": "a process that reads images was ended from outside, perhaps because memory ran out: use "
    "fewer data.workers",
    "shared memory": "no shared memory is left: use data.workers=0 or data.cache=memory",
    "allocate memory": "",
    "failed to map segment": "",
    "DefaultCPUAllocator": "",
}
_NO_MEMORY = (
    "the memory that this process may use is full: use a smaller data.batch_size, fewer data.workers or "
    "data.cache=disk, end other programs, or raise the limit (ulimit -v)"
)


def rest_idle_threads() -> None:
    """Let OpenMP's threads sleep while they wait for work; to be called before torch is imported.

    By default they spin and take the cores from loader workers and other processes: with one core in use elsewhere a
    training step took 2 to 10 times as long. On an idle machine no cost of sleeping could be measured. A policy that
    the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def guarded(*, on_interrupt: Callable[[], str] = lambda: "stopped") -> Iterator[None]:
    """Turn errors that a user can cause into one line and an exit code.

    Args:
        on_interrupt: gives the line after Ctrl-C, which says where the work done so far is.

    Raises:
        SystemExit: 2 after a mistake of the user or when a resource of the machine is used up, 130 after Ctrl-C. All
            other errors are bugs and pass.
    """
    try:
        yield
    except TrireidError as error:
        _say(f"error: {error}")
        raise SystemExit(USER_ERROR) from None
    except KeyboardInterrupt:
        _say(on_interrupt())
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _say(f"error: {place}{os.strerror(error.errno)}; {_ADVICE[error.errno]}")
        raise SystemExit(USER_ERROR) from None
    except (MemoryError, RuntimeError, ImportError, SystemError) as error:
        shortage = _shortage(error)
        if shortage is None:
            raise
        _say(f"error: {shortage}")
        raise SystemExit(USER_ERROR) from None


class OneInterrupt:
    """Within the block, Ctrl-C ends the program in one line; a second Ctrl-C ends it at once.

    Some libraries hide an interrupt during their import and fail later with another error.
    """

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # unless a caller ignores it
            signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        signal.default_int_handler(number, frame)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # else Python prints a traceback at its end
        if self._came and error is not None and not isinstance(error, SystemExit):
            _say("stopped")
            raise SystemExit(INTERRUPTED) from None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes."""
    now: BaseException | None = error
    while now is not None:
        yield now
        now = now.__cause__ or now.__context__


def _shortage(error: BaseException) -> str | None:
    """The line about the resource that is used up, None for any other error."""
    for each in _chain(error):
        if isinstance(each, MemoryError):
            return _NO_MEMORY
        for sign, line in _SHORTAGES.items():
            if sign.lower() in str(each).lower():
                return line or _NO_MEMORY
    return None


def _say(text: str) -> None:
    sys.stderr.write(f"{printable_lines(in_words_of_command(text), indent='  ', limit=_LONGEST_LINE)}\n")
    sys.stderr.flush()
