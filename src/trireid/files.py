"""Files: written so that a reader never sees half of one, and read only where they are files of a sensible size."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EFBIG, EINVAL, EISDIR
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from trireid.errors import InputError, RunError, printable

_log = logging.getLogger(__name__)

LAST_FILE, FEATURES_FILE, RECORDS_FILE = "last.safetensors", "features.safetensors", "records.json"
CALIBRATION_FILE = "calibration.json"
"""Names in a run folder that parts below `train` need as well; `train/run_files.py` has all of them."""

_NAME_BYTES = 120
"""Of a name that is made from a text: file systems take 255, and prefixes and endings are added."""
DEFAULT_LIMIT = 256 * 2**20
"""Bytes of a file of a user that are read at most, where its reader has no limit of its own."""
ELSEWHERE = "choose another folder"
"""What can be done where a folder cannot be written, if the caller has no setting or option for it."""
MAX_NAME = 255
"""Bytes of one part of a path, on the file systems in use."""
_DRIVE = re.compile(r"[A-Za-z]:")
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class UnreadableFileError(OSError):
    """A path that is no regular file, or a file larger than its reader takes; `strerror` says which."""


def read_bytes(path: Path, *, limit: int = DEFAULT_LIMIT) -> bytes:
    """The content of a user's file: a regular file of at most `limit` bytes.

    Reading a named pipe would wait for ever, and a device would fill the memory: neither is opened for reading.

    Raises:
        UnreadableFileError: it is no regular file, or too large; nothing of it was read.
        OSError: it cannot be read.
    """
    with _open_regular(path, limit) as file:
        # Memory is taken for what is asked of `read`: not for the limit, which may be far more than the file.
        told = os.fstat(file.fileno()).st_size
        content = file.read(min(told, limit) + 1)
        if len(content) > told:  # the size that was told may be wrong: files of /proc have 0
            content += file.read(limit + 1 - len(content))
    if len(content) > limit:
        raise UnreadableFileError(EFBIG, _too_large(len(content), limit), str(path))
    return content


def read_head(path: Path, size: int) -> bytes:
    """The first bytes of a user's file of any size.

    Raises:
        UnreadableFileError: it is no regular file.
        OSError: it cannot be read.
    """
    with _open_regular(path, None) as file:
        return file.read(size)


def _open_regular(path: Path, limit: int | None) -> BinaryIO:
    # Without O_NONBLOCK the opening of a named pipe itself waits; for a regular file it changes nothing.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(path, os.fstat(descriptor), limit)
    except OSError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")  # noqa: PTH123 - a descriptor, and the callers close it


def read_text(path: Path, *, limit: int = DEFAULT_LIMIT, encoding: str = "utf-8") -> str:
    """The text of a user's file, see `read_bytes`; line ends are those of the file.

    Raises:
        UnreadableFileError, OSError: as `read_bytes`.
        UnicodeDecodeError: it is not text of this encoding.
    """
    return read_bytes(path, limit=limit).decode(encoding)


def is_file(path: Path) -> bool:
    """Whether a path leads to a file; a name that the system refuses (too long, for example) leads to none."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder, as `is_file`."""
    try:
        return path.is_dir()
    except OSError:
        return False


def check_regular(path: Path, *, limit: int | None = None) -> None:
    """Refuse what `read_bytes` refuses, for a reader that opens the path by itself; None: any size.

    Raises:
        UnreadableFileError, OSError: as `read_bytes`.
    """
    _check_regular(path, path.stat(), limit)


def _check_regular(path: Path, found: os.stat_result, limit: int | None) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise UnreadableFileError(EINVAL, f"it is {kind}, not a regular file", str(path))
    if limit is not None and found.st_size > limit:
        raise UnreadableFileError(EFBIG, _too_large(found.st_size, limit), str(path))


def _too_large(size: int, limit: int) -> str:
    return f"it has {size / 1e6:,.1f} MB, more than the {limit / 1e6:,.1f} MB that are read here"


def inside(folder: Path, name: str) -> Path:
    """The path of a name below a folder, for every name that is not the package's own: from a list, a table, a setting.

    Parts of the name are separated by `/`. The rules are those of all systems, so that a list is safe anywhere.

    Raises:
        InputError: the name leads outside of the folder, or is none that a file can have.
    """
    parts = name.split("/")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        wrong = "holds a character that cannot be printed"
    elif name.startswith("/") or "\\" in name or _DRIVE.match(name):
        wrong = "is no relative path with / between its parts"
    elif any(part in ("", ".", "..") for part in parts):
        wrong = "has an empty part, `.` or `..`"
    elif max(len(part.encode()) for part in parts) > MAX_NAME:
        wrong = f"has a part of more than {MAX_NAME} bytes"
    else:
        return folder.joinpath(*parts)
    raise InputError(f"the name '{printable(name, limit=60)}' {wrong}; it must be that of a file below {folder}")


def real_path(path: Path) -> Path:
    """A path from the root on and without links, as far as it leads; a link that leads to itself is no error here.

    Raises:
        InputError: it holds a NUL, which no path can.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:
        raise InputError(f"the path {printable(str(path))} holds a NUL character; leave it out") from error


@contextmanager
def replacing(path: Path, *, advice: str = ELSEWHERE) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place once the block is left without an error.

    After an error nothing of the new file is left, and an older `path` is as it was.

    Args:
        path: of the file.
        advice: see `writing`.

    Raises:
        RunError: The folder cannot be written or the disk is full.
    """
    temporary = _beside(path)
    try:
        with writing(path.parent, advice=advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # some writers make files that only their owner may read
            temporary.replace(path)
    finally:
        with suppress(OSError):  # what went wrong before says more
            temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """The temporary file of a path, one per process."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of a path that killed processes left behind; no process may be writing it now."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path, *, advice: str = ELSEWHERE) -> Iterator[None]:
    """Turn an error of writing in the block into a `RunError` that names the folder.

    Args:
        folder: that is written.
        advice: what can be done other than to free some space, in the words of the caller: its option or setting.

    Raises:
        RunError: What the operating system said, and what to do.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # the second is how safetensors reports a full disk
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write to the folder {folder} ({reason}): free some space or {advice}") from error


@contextmanager
def locked(folder: Path, *, taken: str) -> Iterator[bool]:
    """Keep other processes that ask for the same out of a folder while the block runs.

    The lock is on the folder itself: it leaves no file, and the system takes it back from a process that is killed.

    Args:
        folder: must exist.
        taken: what to say where another process has it.

    Yields:
        Whether there is a lock: some network file systems have none.

    Raises:
        RunError: Another process has it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(taken) from None
        except OSError as error:
            _log.warning("%s cannot be locked (%s): start no other process in it", folder, error.strerror)
            yield False
        else:
            if not _is_still(folder, descriptor):  # removed by another process between opening and locking
                raise RunError(taken)
            yield True
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process of the loader may hold a copy for some seconds
        os.close(descriptor)


def _is_still(folder: Path, descriptor: int) -> bool:
    """Whether a path still leads to the folder that was opened."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def file_name(text: str) -> str:
    """A name for a file or folder, of any text: other texts give other names, and no name leads elsewhere.

    Letters and digits of all scripts, `.`, `_`, `=` and `-` stay as they are. A part of the hash tells texts apart of
    which something else had to go, which are longer than names may be, or read as a hidden file, a folder above or an
    option.
    """
    kept = "".join(each if each.isalnum() or each in "._=-" else "-" for each in text)
    if text and kept == text and text[0] not in ".-" and len(text.encode()) <= _NAME_BYTES:
        return text
    start = kept.lstrip(".-").encode()[: _NAME_BYTES - 9].decode(errors="ignore").rstrip("-")
    return f"{start or 'name'}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


def check_writable(path: Path) -> None:
    """Find out before long work whether a file can be written; its folder is made, the file is not.

    Raises:
        RunError: The folder cannot be made or written, or the path is a folder.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(EISDIR, f"{path} is a folder, not a file")
        temporary = _beside(path)
        temporary.touch()
        temporary.unlink()


def check_own(path: Path, *, kind: str, is_own: Callable[[Path], object]) -> None:
    """Find out before long work whether a file can be written, and whether nothing but an older one would be lost.

    Args:
        path: to write.
        kind: what such files are called.
        is_own: whether an existing file is of this kind; may raise OSError or ValueError where it is not.

    Raises:
        RunError: As `check_writable`; or there is another kind of file, such as a checkpoint or the metrics of a run.
    """
    check_writable(path)
    if not path.exists() or (is_file(path) and not path.stat().st_size):
        return
    try:
        own = is_own(path)
    except (OSError, ValueError):
        own = False
    if not own:
        raise RunError(
            f"{printable(str(path))} exists and is no {kind}: it is not replaced; choose another file, or remove it"
        )


def starts_with(path: Path, text: str) -> bool:
    """Whether a file begins with a text."""
    return read_head(path, len(text.encode())) == text.encode()


def write_text(path: Path, text: str, *, advice: str = ELSEWHERE) -> None:
    """Write a whole text file in UTF-8, or nothing of it; `advice`: see `writing`.

    Raises:
        RunError: The folder cannot be written or the disk is full.
    """
    with replacing(path, advice=advice) as temporary:
        # A path in it may hold bytes that are not UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any, *, advice: str = ELSEWHERE) -> None:
    """Write a whole JSON file, readable by people, or nothing of it; `advice`: see `writing`.

    Raises:
        RunError: The folder cannot be written or the disk is full.
    """
    write_text(path, json.dumps(content, indent=2) + "\n", advice=advice)
