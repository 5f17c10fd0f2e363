"""Keep libtiff, which decodes some TIFF files for Pillow, from writing its own messages to the terminal."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def silence_libtiff() -> None:
    """Remove the message handlers of libtiff; Pillow raises an error where libtiff fails, with or without them.

    The handlers are pointers of the process that are set once, so threads need no lock, and the file descriptor of
    stderr stays as it is. Where the library is not found (other systems than Linux), the messages stay.
    """
    for path in _loaded_libraries("libtiff"):
        with suppress(OSError, AttributeError):  # a library of this name without these functions
            library = ctypes.CDLL(path)
            for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                set_handler = getattr(library, name)
                set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                set_handler(None)


def _loaded_libraries(prefix: str) -> list[str]:
    """Paths of the shared libraries of this process whose names start so."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    paths = {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if Path(path).name.startswith(prefix))
