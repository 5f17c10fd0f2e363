"""What every request passes before the app sees it: who may send it, how much of it is read, how many run at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from time import perf_counter

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trireid.serve.limits import RETRY_SECONDS, Limits, Slots
from trireid.serve.observing import Observer
from trireid.serve.problems import Problem
from trireid.serve.security import HEADERS, Access, is_open

WITH_IMAGES = ("/v1/embed", "/v1/search", "/v1/items", "/search", "/add")
"""Addresses that images are sent to; bodies of all others are read as text by what has no limit of its own."""
_DISCARDED_SECONDS = 2.0
_UNROUTED = "none"
_GONE = 499
"""Counted for a client that went away before its request was complete."""


class _GoneError(Exception):
    """The client went away before its request was complete."""


class Gate:
    """Middleware around the whole app.

    The body is read whole, counted while it arrives, before the request takes one of the places in flight: a client
    that sends slowly holds none of them. Afterwards the app reads it from memory.

    Args:
        app: what answers.
        limits: how much is taken.
        access: who may send.
        observer: what is counted.
        refuse: the answer to a request that may not pass.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        access: Access,
        observer: Observer,
        refuse: Callable[[Request, Problem], Response],
    ) -> None:
        self.app = app
        self.limits = limits
        self.access = access
        self.observer = observer
        self.refuse = refuse
        self.places = Slots(limits.in_flight, "requests")
        self.buffered = Slots(limits.buffered_bytes, "bytes of requests")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, answer = perf_counter(), _Answer(send)
        try:
            await self._pass(scope, receive, answer)
        except Problem as problem:
            await self.refuse(Request(scope), problem)(scope, receive, answer)
        except _GoneError:
            answer.status = _GONE
        except asyncio.CancelledError:
            # The service ends and cancels what is not answered in time: the client is told, and the log has no error.
            if not answer.status:
                await self.refuse(Request(scope), _ending())(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", _UNROUTED)
            status = answer.status or 500  # an error that the app's outermost layer answers
            self.observer.request(_method(scope), route, status, perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        _check_repeated(scope)
        self.access.check(scope["method"], scope["path"], headers)
        light = is_open(scope["path"]) or scope["path"] == "/metrics"
        if not light:
            self.places.check()
        takes_images = scope["method"] == "POST" and scope["path"] in WITH_IMAGES
        most = self.limits.body_bytes if takes_images else min(self.limits.text_bytes, self.limits.body_bytes)
        body = await self._body(headers, receive, most)
        try:
            with nullcontext() if light else self.places.taken():
                self._show()
                await self.app(scope, _replayed(body, receive), send)
        finally:
            self.buffered.give(len(body))
            self._show()

    def _show(self) -> None:
        self.observer.in_flight.set(self.places.used)
        self.observer.buffered.set(self.buffered.used)

    async def _body(self, headers: Mapping[str, str], receive: Receive, most: int) -> bytes:
        """The whole body of at most so many bytes; its length is taken from `buffered`."""
        stated = headers.get("content-length", "0")
        if not stated.isdigit() or int(stated) > most:
            raise _too_large(most)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    chunk = message.get("body", b"")
                    if size + len(chunk) > most:
                        await _discard(receive)
                        raise _too_large(most)
                    self.buffered.take(len(chunk))
                    size += len(chunk)
                    chunks.append(chunk)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            self.buffered.give(size)
            raise Problem(
                408, f"the body did not arrive within {self.limits.body_seconds:g} s", headers={"Connection": "close"}
            ) from error
        except (Problem, _GoneError, asyncio.CancelledError):
            self.buffered.give(size)
            raise
        return b"".join(chunks)


class _Answer:
    """Sends an answer with the headers of security, and knows its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name.lower() for name, _ in message.get("headers", ())}
            added = [
                (name.lower().encode(), value.encode())
                for name, value in {**HEADERS, "Cache-Control": "no-store"}.items()
                if name.lower().encode() not in given
            ]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await self._send(message)


def _method(scope: Scope) -> str:
    """The method as a label: clients can invent any."""
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return scope["method"] if scope["method"] in known else "other"


def _check_repeated(scope: Scope) -> None:
    """Refuse a header twice that says who sends, to whom: a proxy before this service may have read the other one."""
    for single in (b"host", b"authorization", b"origin", b"content-length", b"content-type"):
        if sum(name == single for name, _ in scope["headers"]) > 1:
            raise Problem(400, f"the request has the header {single.decode()} twice")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message; afterwards what the server reports (that the client went away)."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _discard(receive: Receive) -> None:
    """Let a client that sends too much finish, for a short time: else it may not see the answer."""
    try:
        async with asyncio.timeout(_DISCARDED_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        return


def _ending() -> Problem:
    headers = {"Retry-After": str(RETRY_SECONDS), "Connection": "close"}
    return Problem(503, "the service is ending and did not finish this in time; send it again", headers=headers)


def _too_large(most: int) -> Problem:
    return Problem(
        413,
        f"the body has more than the {most} bytes that are taken here; send less at once",
        headers={"Connection": "close"},
        limit=most,
    )
