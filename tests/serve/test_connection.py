"""Connections that send or read too slowly, or that are too many, are let go."""

import asyncio
import json
import socket

import uvicorn
from uvicorn.server import ServerState

from trireid.serve.connection import limited_connection
from trireid.serve.limits import Limits


async def large_app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"20000000")]})
    for _ in range(20):
        await send({"type": "http.response.body", "body": bytes(10**6), "more_body": True})
    await send({"type": "http.response.body"})


async def until_closed(reader):
    """All that comes until the other side closes, in at most two seconds."""
    async with asyncio.timeout(2):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def let_go(state):
    """Wait until the server has no connection and no request any more."""
    async with asyncio.timeout(2):
        while state.connections or state.tasks:
            await asyncio.sleep(0.01)


def with_server(limits, client):
    async def run():
        config = uvicorn.Config(large_app, http=limited_connection(limits), lifespan="off", log_config=None)
        config.load()
        state = ServerState()

        def connection():
            return config.http_protocol_class(config=config, server_state=state, app_state={})

        server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
        async with server:
            await client(server.sockets[0].getsockname()[1], state)
        await let_go(state)

    asyncio.run(run())


def test_a_head_that_does_not_end_is_let_go():
    async def client(port, state):
        for part in (b"", b"GET / HTTP/1.1\r\nHost: x\r\nX: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(part)
            assert await until_closed(reader) == b""
            writer.close()

    with_server(Limits(header_seconds=0.1), client)


def test_a_client_that_does_not_read_is_let_go():
    async def client(port, state):
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.05)
            assert len(state.connections) == 1
            await let_go(state)

    with_server(Limits(send_seconds=0.2), client)


def test_one_connection_too_many_is_closed_and_what_is_no_http_is_told_so():
    async def client(port, state):
        first = await asyncio.open_connection("127.0.0.1", port)
        second = await asyncio.open_connection("127.0.0.1", port)
        assert await until_closed(second[0]) == b""
        first[1].write(b"\x16\x03\x01\x02\x00 no http at all\r\n\r\n")
        head, _, body = (await until_closed(first[0])).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert b"application/problem+json" in head
        assert json.loads(body)["status"] == 400
        for _, writer in (first, second):
            writer.close()

    with_server(Limits(connections=1), client)
