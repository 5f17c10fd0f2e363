"""Runs the app until the process is told to end: it then answers what it has taken, and ends within five seconds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

import uvicorn
from starlette.types import ASGIApp

from trireid.errors import InputError, printable
from trireid.serve.connection import HEAD_BYTES, limited_connection
from trireid.serve.limits import Limits

DRAIN_SECONDS = 2
"""That requests in flight have to end after SIGTERM."""
END_SECONDS = 4.0
"""From SIGTERM until the process ends, even where a thread still computes: no answer of success depends on it."""
_BACKLOG = 512


class _Server(uvicorn.Server):
    """Ends with exit code 0 after SIGTERM and SIGINT; uvicorn raises the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals while the server runs."""
        names = (signal.SIGTERM, signal.SIGINT)
        before = {name: signal.signal(name, self._on_signal) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self.should_exit = True
            last = threading.Timer(END_SECONDS, os._exit, (0,))
            last.daemon = True
            last.start()


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address, so that a port in use is an error before the model is loaded.

    Raises:
        InputError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where the protocol is stated; with it each answer takes 40 ms more.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"--host {printable(host, limit=80)} --port {port}: {reason}; choose another port, or an address of this "
            "machine"
        ) from error
    return found


def serve(app: ASGIApp, listening: socket.socket, *, limits: Limits, started: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT.

    Args:
        app: from `create_app`.
        listening: from `listen`.
        limits: of connections; those of requests are the app's.
        started: called once the service answers.
    """
    config = uvicorn.Config(
        app,
        http=limited_connection(limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,  # addresses hold names of users
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(limits.header_seconds),
        timeout_graceful_shutdown=DRAIN_SECONDS,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _Server(config)
    asyncio.run(_run(server, listening, started))


async def _run(server: uvicorn.Server, listening: socket.socket, started: Callable[[], None]) -> None:
    running = asyncio.create_task(server.serve([listening]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if not running.done():
        started()
    await running


def end_now() -> NoReturn:
    """End the process once all is closed: the engine's libraries would take three seconds more to be unloaded."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)
