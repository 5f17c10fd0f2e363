"""A standalone Milvus in a network namespace of its own, forwarded to one loopback port. See `milvus_server`.

Milvus 2.3.5 listens on every interface, without a password, and no setting changes that. In a namespace of its own it
has no interface but its own loopback. This script, which runs inside, passes connections of one listening socket on to
it; that socket was bound to 127.0.0.1 outside before.
Run by the environment that has the package milvus: milvus_process.py ENGINE DATA DESCRIPTOR.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

PR_SET_PDEATHSIG = 1
SIOCSIFFLAGS = 0x8914
IFF_UP_RUNNING = 0x41


def die_with_parent() -> None:
    """SIGKILL to this process when its parent ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def start(engine: Path, data: Path) -> tuple[subprocess.Popen[bytes], int, str]:
    """The server, its port, and the address that answers OK when it is ready."""
    from milvus import MilvusServerConfig, _initialize_data_files

    _initialize_data_files(str(engine))
    config = MilvusServerConfig(data_dir=str(data))
    roles = ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode", "indexCoord")
    config.extra_configs |= {f"{role}.ip": "127.0.0.1" for role in roles}
    config.resolve()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        metrics = probe.getsockname()[1]
    binaries = engine / "bin"
    environment = os.environ | {
        "DEPLOY_MODE": "STANDALONE",
        "METRICS_PORT": str(metrics),
        "MILVUS_RUN_DIR": str(data / "run"),
        "LD_LIBRARY_PATH": str(binaries),
    }
    with (data / "output.log").open("wb") as log:
        server = subprocess.Popen(
            [str(binaries / "milvus"), "run", "standalone"],
            cwd=data,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
    return server, config.get("proxy_port"), f"http://127.0.0.1:{metrics}/healthz"


def ready(address: str) -> bool:
    """Whether all parts of the server answer."""
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return b"OK" in answer.read()
    except (OSError, urllib.error.URLError):
        return False


async def forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Bytes from one side to the other until either ends."""
    with contextlib.suppress(ConnectionError):
        while block := await source.read(1 << 16):
            target.write(block)
            await target.drain()
    target.close()


async def serve(listening: socket.socket, server: subprocess.Popen[bytes], port: int, health: str) -> None:
    """Forward connections as long as the server runs; its process id is printed when it is ready."""
    passing = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        for task in (forward(reader, inner_writer), forward(inner_reader, writer)):
            running = asyncio.create_task(task)
            passing.add(running)
            running.add_done_callback(passing.discard)

    while server.poll() is None and not await asyncio.to_thread(ready, health):
        await asyncio.sleep(0.1)
    async with await asyncio.start_server(connected, sock=listening):
        print(server.pid, flush=True)
        while server.poll() is None:
            await asyncio.sleep(0.05)


def main() -> None:
    die_with_parent()
    engine, data, descriptor = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    listening = socket.socket(fileno=descriptor)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as request, contextlib.suppress(PermissionError):
        fcntl.ioctl(request, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP_RUNNING))
    asyncio.run(serve(listening, *start(engine, data)))


if __name__ == "__main__":
    main()
