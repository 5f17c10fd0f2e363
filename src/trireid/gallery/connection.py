"""A client of Milvus, on a folder or on a server: how it is opened, what its errors are called, and how it ends.

- Milvus Lite keeps the lock of its folder after the client is closed: `close` releases it.
- Lite lets one process into a folder. The folder is locked here as well, before Lite is started, since Lite reports a
  taken lock only in its log.
- A server that hangs would be waited for over a minute: every call to a server has a limit of time.
- Lite (3.2) that is killed, or has no space left, while it writes the file of an index cannot open its folder again.
  Lite that is killed after it has written a log to its files, and before it has removed that log, reads it once more
  when it starts: these rows are then there twice. So a file marks the folder as in use. Where an earlier process has
  left it, indexes are removed, which Lite then builds from its data, and `Connection.interrupted` tells the engine to
  look for such rows.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from trireid.errors import RunError, printable
from trireid.files import locked, real_path, writing

DATA = "milvus.db"
"""Folder of Milvus Lite within that of the gallery; Milvus wants this ending."""
IN_USE = "in_use"
"""File in the folder of the gallery while it is open."""
OLDEST = (2, 3)
"""Version of a server that has upsert and counts."""
SECONDS = 30.0
"""That a server may take for an answer."""
LOADING_SECONDS = 600.0
"""That a server may take to load a gallery into its memory."""
_CONNECT_SECONDS = 10.0
_LIMITED = {
    "alter_collection_properties",
    "create_collection",
    "create_index",
    "delete",
    "describe_collection",
    "drop_collection",
    "flush",
    "get_server_version",
    "has_collection",
    "list_collections",
    "query",
    "rename_collection",
    "search",
    "upsert",
}
_UNREACHABLE = (2, "UNAVAILABLE")


def is_server(location: str | Path) -> bool:
    """Whether a location is the address of a server."""
    return str(location).startswith(("http://", "https://"))


class Connection:
    """An open client; its methods are those of `pymilvus.MilvusClient`, with a limit of time where it is a server.

    Args:
        location: a folder, or `http://host:port`.
        lock: of the folder, where the caller has it: it is held until the client is closed.

    Attributes:
        embedded: whether it is Milvus Lite in a folder.
        interrupted: whether the folder was left by a process that did not close it, or Lite has reported an error.
            Set to False once that is dealt with; otherwise the next one that opens the folder is told so again.
    """

    def __init__(self, location: str, *, lock: ExitStack | None = None) -> None:
        self.location, self.embedded, self.interrupted = location, not is_server(location), False
        self._closed = False
        with ExitStack() as opening:
            self._client = self._open(opening, lock)
            self._cleanup = opening.pop_all()

    def __getattr__(self, name: str) -> Any:
        if self._closed:
            raise RunError(f"the gallery {printable(self.location)} was closed: open it again with Gallery.open")
        method = getattr(self._client, name)
        return partial(method, timeout=SECONDS) if name in _LIMITED and not self.embedded else method

    def close(self) -> None:
        """Let go of the folder or the server."""
        self._closed = True
        self._cleanup.close()

    def _open(self, opening: ExitStack, lock: ExitStack | None) -> Any:
        for name in ("pymilvus", *(("milvus_lite",) if self.embedded else ())):
            try:
                import_module(name)
            except ImportError:
                raise RunError(f"a gallery needs the package {name}: pip install 'trireid[gallery]'") from None
        pymilvus = import_module("pymilvus")
        if self.embedded:
            return self._open_folder(opening, lock, pymilvus.MilvusClient)
        with self.reporting():
            client = pymilvus.MilvusClient(uri=self.location, timeout=_CONNECT_SECONDS)
            opening.callback(client.close)
            self._check_version(str(client.get_server_version(timeout=SECONDS)))
        return client

    def _open_folder(self, opening: ExitStack, lock: ExitStack | None, client_class: Callable[..., Any]) -> Any:
        folder = real_path(Path(self.location))
        taken = f"the gallery {printable(self.location)} is open elsewhere: close it there, or use a server"
        opening.enter_context(locked(folder, taken=taken) if lock is None else lock.pop_all())
        mark = folder / IN_USE
        with writing(folder):
            self.interrupted = mark.exists()
            mark.touch()
            for index in (folder / DATA).glob("**/indexes/*") if self.interrupted else ():
                index.unlink()
        opening.callback(self._leave, mark)
        data = str(folder / DATA)
        opening.callback(_release, data)
        with self.reporting():
            client = client_class(uri=data)
        opening.callback(client.close)
        return client

    def _leave(self, mark: Path) -> None:
        if not self.interrupted:
            mark.unlink(missing_ok=True)

    def _check_version(self, version: str) -> None:
        found = re.match(r"v?(\d+)\.(\d+)", version)
        if found and (int(found[1]), int(found[2])) < OLDEST:
            raise RunError(
                f"the Milvus server {printable(self.location)} has version {printable(version, limit=40)}; a gallery "
                f"needs {'.'.join(map(str, OLDEST))} or newer: update the server, or keep the gallery in a folder"
            )

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn errors of the client in the block into one line, and keep its log off the terminal.

        Raises:
            RunError: what went wrong, and what to do.
        """
        exceptions, grpc = import_module("pymilvus.exceptions"), import_module("grpc")
        with _quiet() as logged:
            try:
                yield
            except (exceptions.MilvusException, grpc.RpcError, OSError) as error:
                self.interrupted = self.embedded
                raise RunError(self._line(error, logged)) from error

    def _line(self, error: Any, logged: list[BaseException]) -> str:
        place = printable(self.location)
        code = error.code() if callable(getattr(error, "code", None)) else getattr(error, "code", None)
        code = getattr(code, "name", code)
        if not self.embedded and code in _UNREACHABLE:
            return f"the Milvus server {place} cannot be reached: check the address, and that the server runs"
        if not self.embedded and "UNIMPLEMENTED" in str(error):
            return f"what answers at {place} is no Milvus server: give its own port, 19530 where it was not changed"
        if not self.embedded and code == "DEADLINE_EXCEEDED":
            return (
                f"the Milvus server {place} has not answered for {SECONDS:g} seconds: see to the server, then repeat "
                "the command (what was reported as done is kept)"
            )
        reason = _reason(logged[-1] if logged else error)
        if "No space left" in reason or "File too large" in reason:
            return f"the gallery {place} cannot be written ({reason}): free some space, then repeat the command"
        if "Read-only file system" in reason or "Permission denied" in reason:
            return f"the gallery {place} cannot be written ({reason}): make its folder writable, or copy the folder"
        return f"the engine of the gallery {place} reports: {reason}"


def _reason(error: BaseException) -> str:
    text = str(getattr(error, "message", None) or getattr(error, "strerror", None) or error)
    return printable(text.split("\n")[0], limit=200)


class _Collector(logging.Handler):
    """Keeps the errors that are logged with a traceback."""

    def __init__(self, errors: list[BaseException]) -> None:
        super().__init__()
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        if record.exc_info and record.exc_info[1] is not None:
            self._errors.append(record.exc_info[1])


@contextmanager
def _quiet() -> Iterator[list[BaseException]]:
    """No log of the client and of Lite on the terminal: it is a traceback of each error that is raised anyhow.

    Yields:
        The errors that Lite has logged: why it did not start is said nowhere else.
    """
    errors: list[BaseException] = []
    collector = _Collector(errors)
    client, lite = logging.getLogger("pymilvus"), logging.getLogger("milvus_lite")
    level, passes_on = client.level, lite.propagate
    client.setLevel(logging.CRITICAL)
    lite.addHandler(collector)
    lite.propagate = False
    try:
        yield errors
    finally:
        client.setLevel(level)
        lite.removeHandler(collector)
        lite.propagate = passes_on


def _release(data: str) -> None:
    """Stop the Lite server of a folder in this process, which lets go of its lock."""
    try:
        from milvus_lite.server_manager import server_manager_instance
    except ImportError:
        return
    server_manager_instance.release_server(data)
