"""What runs inside a forked child: limits, streams of its own, and a watch over what is written, run and connected.

The package writes through `sys.stdout` and `sys.stderr`, which go to files of their own. What libraries beneath it
write to the descriptors 1 and 2 (a decoder's warning, an abort) goes to a third file: such words name no file and reach
a user's terminal, and are a fault.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

CPU_SECONDS = 20
MEMORY_BYTES = 3 * 2**30  # more than the parent has; a child that wants more than MOST_GROWTH is told as well
FILE_BYTES = 2**30

TRACEBACK, WRONG_RESULT = 99, 98
SEEN = "seen.json"  # written when a task has ended: exit code, peak of memory, what was watched
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event of the interpreter -> the places in its arguments that hold a path that changes, and those of their folders.
CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),),
    "os.link": ((1, 3),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
}
RUNS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
HARMLESS_COMMANDS = ("git", "uname", "fc-list", "lscpu")  # what ran, the processor, fonts
HARMLESS_PLACES = ("/dev/null/", "/dev/shm/", "/dev/tty/")


class WrongResult(Exception):
    """A case that ended well and gave something that it must not give."""


class Watch:
    """Notes what the interpreter is about to change outside of some folders, to run or to connect to."""

    def __init__(self) -> None:
        self.begin()

    def begin(self, *folders: Path) -> None:
        """Forget what was noted; from now on what lies in these folders may be changed."""
        self.folders = tuple(os.path.realpath(folder) for folder in folders)
        self.outside: list[str] = []
        self.ran: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The hook itself; it must not raise and must not import."""
        if event == "open" and isinstance(arguments[0], (str, bytes)) and (arguments[2] or 0) & WRITES:
            self._changed(arguments[0], None)
        elif event in CHANGES:
            for path, folder in CHANGES[event]:
                self._changed(arguments[path], None if folder is None else arguments[folder], made=event == "os.mkdir")
        elif event in RUNS and not (event == "subprocess.Popen" and _command(arguments) in HARMLESS_COMMANDS):
            self.ran.append(f"{event} {arguments!r:.200}")

    def _changed(self, path: object, folder: object, *, made: bool = False) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        text = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0 and not text.startswith("/"):
            text = f"/proc/self/fd/{folder}/{text}"
        with contextlib.suppress(OSError, ValueError):
            parent, name = os.path.split(text)
            within = os.path.realpath(parent or ".")
            place = f"{within}/{name}"
            refused = within == "/proc" or (made and Path(place).is_dir())  # by the system: nothing changes
            if not refused and not f"{place}/".startswith(
                (*(f"{folder}/" for folder in self.folders), *HARMLESS_PLACES, f"/proc/{os.getpid()}/")
            ):
                self.outside.append(place)


@dataclass(frozen=True)
class Task:
    """What a child does, where its words and what was watched go, and its working directory."""

    action: Callable[[], object]
    folder: Path
    work: Path


def run_in_sandbox(tasks: Sequence[Task]) -> NoReturn:
    """Run tasks one after the other in this process, which ends with them; `seen.json` tells of each that ended."""
    code = TRACEBACK
    try:
        os.setsid()
        sys.argv = ["trireid"]
        _limit()
        watch = Watch()
        sys.addaudithook(watch)
        for task in tasks:
            watch.begin(task.folder, task.work)
            _enter(task)
            code = _code_of(task.action)
            sys.stdout.flush()
            sys.stderr.flush()
            seen = {"code": code, "peak": _peak_memory(), "outside": watch.outside, "ran": watch.ran}
            (task.folder / SEEN).write_text(json.dumps(seen), encoding="utf-8", errors="backslashreplace")
    finally:
        os._exit(code)


def _enter(task: Task) -> None:
    """Streams, folders, time and the measure of memory of a task."""
    os.chdir(task.work)
    foreign = os.open(task.folder / "foreign.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
    os.dup2(foreign, 1)
    os.dup2(foreign, 2)
    os.close(foreign)
    sys.stdout = (task.folder / "out.txt").open("w", encoding="utf-8", errors="strict", buffering=1)
    sys.stderr = (task.folder / "err.txt").open("w", encoding="utf-8", errors="backslashreplace", buffering=1)
    os.environ["TMPDIR"] = os.environ["HOME"] = str(task.work)  # an input may name "~"
    os.environ.pop("XDG_CACHE_HOME", None)
    tempfile.tempdir = None
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of memory starts anew


def _peak_memory() -> int:
    """KiB that this process held at most since the last task began."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


def _code_of(action: Callable[[], object]) -> int:
    """What a shell would see of an action: 0, the code it exits with, 2 after an error of the package, or a fault."""
    from trireid.errors import TrireidError, printable_lines

    try:
        action()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except TrireidError as error:
        sys.stderr.write(f"error: {printable_lines(str(error), limit=2000)}\n")
        return 2
    except WrongResult as error:
        sys.stderr.write(f"wrong: {error}\n")
        return WRONG_RESULT
    except BaseException:  # whatever it is, it is what the case is about
        traceback.print_exc()
        return TRACEBACK
    return 0


def _limit() -> None:
    have = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (have + MEMORY_BYTES, have + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGXCPU, file=2, chain=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _command(arguments: tuple[Any, ...]) -> str:
    """The name of the program that a call of subprocess starts."""
    words = arguments[1]
    first = words[0] if isinstance(words, (list, tuple)) and words else words
    return Path(os.fsdecode(first)).name if isinstance(first, (str, bytes, os.PathLike)) else ""
