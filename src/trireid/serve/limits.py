"""How much a service takes of one request and of all of them together, and how long it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from trireid.serve.problems import Problem

RETRY_SECONDS = 1


@dataclass(frozen=True)
class Limits:
    """Limits of a service. A request beyond one of them is refused with 413, 429 or 408, and nothing of it is done.

    Attributes:
        body_bytes: of the body of one request.
        text_bytes: of the body of a request that takes no image; 1000 keys fit into it.
        json_values: values of the JSON of one request. Each of the smallest takes a kilobyte once it is checked, so a
            body of allowed size could take the memory of the machine.
        buffered_bytes: of the bodies of all requests that are held at once.
        image_pixels: of one image, by its header, before it is decoded; the default holds a frame of 3840 x 2160.
        decoded_pixels: of all images of one request; also of all images that are decoded at once.
        items: of one request.
        top: matches of one query.
        page: items of one page of a list.
        metadata_bytes: of the metadata of one item, as JSON.
        in_flight: requests that are worked on or wait for the model at once.
        connections: open at once.
        header_seconds: until the head of a request has arrived; also how long an idle connection stays open.
        body_seconds: until the body of a request has arrived.
        send_seconds: that a client may take to read what is sent.
        batch_items: of several requests that are embedded together at most.
        batch_seconds: that a request waits for others to be embedded with.
    """

    body_bytes: int = 32 * 2**20
    text_bytes: int = 2**21
    json_values: int = 2**16
    buffered_bytes: int = 256 * 2**20
    image_pixels: int = 2**23
    decoded_pixels: int = 2**25
    items: int = 64
    top: int = 1000
    page: int = 1000
    metadata_bytes: int = 16 * 2**10
    in_flight: int = 64
    connections: int = 1024
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    send_seconds: float = 30.0
    batch_items: int = 32
    batch_seconds: float = 0.003


class Slots:
    """Counts what is in use, and refuses more than `most` with 429."""

    def __init__(self, most: int, what: str) -> None:
        self.most = most
        self.what = what
        self.used = 0

    def check(self, amount: int = 1) -> None:
        """Refuse at once what would not fit now.

        Raises:
            Problem: 429.
        """
        if self.used + amount > self.most:
            raise Problem(
                429,
                f"the service has reached its limit of {self.most} {self.what} at once; send it again in a moment",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )

    def take(self, amount: int = 1) -> None:
        """Use some of it; `give` them back.

        Raises:
            Problem: 429.
        """
        self.check(amount)
        self.used += amount

    def give(self, amount: int = 1) -> None:
        """Give back what was taken."""
        self.used -= amount

    @contextmanager
    def taken(self, amount: int = 1) -> Iterator[None]:
        """Use some of it within the block."""
        self.take(amount)
        try:
            yield
        finally:
            self.give(amount)


class Budget:
    """An amount that requests share: who needs more than is left waits its turn, first come, first served."""

    def __init__(self, whole: int) -> None:
        self.whole = whole
        self._left = whole
        self._turn = asyncio.Lock()
        self._given = asyncio.Event()

    @asynccontextmanager
    async def taken(self, amount: int) -> AsyncIterator[None]:
        """Use some of it within the block; `amount` must not be more than the whole."""
        async with self._turn:
            while self._left < amount:
                self._given.clear()
                await self._given.wait()
            self._left -= amount
        try:
            yield
        finally:
            self._left += amount
            self._given.set()
