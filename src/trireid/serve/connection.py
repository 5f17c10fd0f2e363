"""One connection of the server: who is slow to send, slow to read or one too many is let go."""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from trireid.serve.limits import Limits
from trireid.serve.problems import MEDIA_TYPE

HEAD_BYTES = 16 * 2**10
"""Of the head of a request."""
_CLOSING_SECONDS = 5.0


class Connection(H11Protocol):
    """uvicorn's connection with time limits of its own: uvicorn has none for a head or a reader that never ends."""

    limits = Limits()
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """A client has sent something."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # a head that has begun, or nothing yet
            self._wait_for_head()
        else:
            self._stop("_head_timer")

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._stop("_head_timer", "_send_timer")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than the service writes."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self.limits.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read what was waiting."""
        self._stop("_send_timer")
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for some time after an answer."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(_CLOSING_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP with problem details, as everything else."""
        detail = "this is no HTTP request, or its head is too long"
        body = json.dumps({"type": "about:blank", "title": "Bad Request", "status": 400, "detail": detail}).encode()
        headers = [("content-type", MEDIA_TYPE), ("connection", "close"), ("content-length", str(len(body)))]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            parts = (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body))
            for part in (*parts, h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()
        self.loop.call_later(_CLOSING_SECONDS, self.transport.abort)

    def _wait_for_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.header_seconds, self.transport.abort)

    def _stop(self, *names: str) -> None:
        for name in names:
            timer = getattr(self, name)
            if timer is not None:
                timer.cancel()
            setattr(self, name, None)


def limited_connection(limits: Limits) -> type[Connection]:
    """The class of connections with some limits."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
