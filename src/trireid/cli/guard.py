"""What a user's mistake looks like: one clear line on the error stream and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trireid.cli.wording import in_own_words
from trireid.errors import TrireidError, printable_lines

USER_ERROR = 2
INTERRUPTED = 130

# Faults of the machine that a user can mend; any other OSError is a bug and keeps its traceback.
_ADVICE = {
    errno.ENOSPC: "free some space there, or choose another folder",
    errno.EDQUOT: "free some space there, or choose another folder",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOTDIR: "a file stands where a folder should be; choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "too many open files; use fewer data.workers",
}


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
        SystemExit: 2 after a user's mistake, 130 after Ctrl-C. All other errors pass: they are bugs.
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


def _say(text: str) -> None:
    sys.stderr.write(f"{printable_lines(in_own_words(text), indent='  ')}\n")
    sys.stderr.flush()
