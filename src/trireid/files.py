"""Writing files so that a reader never sees half of one, and a full disk is a clear error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EISDIR
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from trireid.errors import RunError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place once the block is left without an error.

    After an error nothing of the new file is left, and an older `path` is as it was.

    Raises:
        RunError: The folder cannot be written or the disk is full.
    """
    temporary = _beside(path)
    try:
        with writing(path.parent):
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
    """The temporary file of a path, one a process."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of a path that processes left which were killed; none may be writing it now."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an error of writing in the block into a `RunError` that names the folder.

    Raises:
        RunError: What the operating system said, and what to do.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # the second is how safetensors reports a full disk
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"cannot write to the folder {folder} ({reason}): free some space or choose "
            "another folder (of a run: output=..., of decoded pixels: data.cache_folder=...)"
        ) from error


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


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8, or nothing of it.

    Raises:
        RunError: The folder cannot be written or the disk is full.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a whole JSON file, readable by people, or nothing of it.

    Raises:
        RunError: The folder cannot be written or the disk is full.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")
