"""What a user's mistake looks like: one clear line on the error stream and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trireid.cli.wording import in_own_words
from trireid.errors import TrireidError, printable_lines

USER_ERROR = 2
_LONGEST_LINE = 2000  # characters: a name or path of others may be longer than anybody reads
INTERRUPTED = 130

# Faults of the machine that a user can mend; any other OSError is a bug and keeps its traceback.
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

# How libraries say that the machine has no more of something; they have no classes of their own for it.
_SHORTAGES = {
    "Too many open files": "too many open files: use fewer data.workers, or allow more (ulimit -n)",
    "ancdata": "too many open files: use fewer data.workers, or allow more (ulimit -n)",
    "can't start new thread": "no further thread can be started: use fewer data.workers, or allow more (ulimit -u, -v)",
    "CUDA out of memory": "the memory of the GPU is full: use a smaller data.batch_size or evaluate.batch_size",
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

    By default they spin, which takes the cores from loader workers and other processes: with one core in use elsewhere
    a training step was measured 2 to 10 times slower. On a quiet machine sleeping costs nothing measurable. What the
    user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def guarded(*, on_interrupt: Callable[[], str] = lambda: "stopped") -> Iterator[None]:
    """Turn the errors that a user can cause into a line and an exit code.

    Args:
        on_interrupt: gives the line after Ctrl-C, which says where the work so far is.

    Raises:
        SystemExit: 2 after a user's mistake or where the machine has too little of something, 130 after Ctrl-C. All
            other errors pass: they are bugs.
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
    """While the block runs, Ctrl-C ends it in a line, whatever error becomes of it; another one ends it without a word.

    Some libraries take an interrupt during their import for a fault, or for nothing, and fail later by another error.
    """

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a caller may have it ignored
            signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        signal.default_int_handler(number, frame)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would show where it is as it winds up
        if self._came and error is not None and not isinstance(error, SystemExit):
            _say("stopped")
            raise SystemExit(INTERRUPTED) from None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it came from."""
    now: BaseException | None = error
    while now is not None:
        yield now
        now = now.__cause__ or now.__context__


def _shortage(error: BaseException) -> str | None:
    """What the machine has too little of, where that is what an error is about."""
    for each in _chain(error):
        if isinstance(each, MemoryError):
            return _NO_MEMORY
        for sign, line in _SHORTAGES.items():
            if sign.lower() in str(each).lower():
                return line or _NO_MEMORY
    return None


def _say(text: str) -> None:
    sys.stderr.write(f"{printable_lines(in_own_words(text), indent='  ', limit=_LONGEST_LINE)}\n")
    sys.stderr.flush()
