"""The server of the tests: it is seen by this machine only, and ends with the tests however they end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.server

STARTS = """
import milvus_server, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
with milvus_server.running() as server:
    print(server.process, flush=True)
    time.sleep(300)
"""


def listening(process: int) -> set[str]:
    """The local addresses, in hexadecimal, of the sockets that listen in the network of a process."""
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/{process}/net/{name}").read_text().splitlines()]
    return {fields[1] for fields in map(str.split, lines) if fields[3] == "0A"}


def test_the_server_is_seen_by_this_machine_only(server):
    port = int(server.address.rpartition(":")[2])
    here = {address for address in listening(psutil.Process().pid) if int(address.rpartition(":")[2], 16) == port}
    assert here == {f"0100007F:{port:04X}"}  # 127.0.0.1

    inside = Path(f"/proc/{server.process}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in inside] == ["lo"]
    assert len(listening(server.process)) > 5  # its many parts, on all interfaces of its own network


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_the_server_ends_with_the_process_that_started_it(server, sent):
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", STARTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as starter:
        assert starter.stdout is not None
        process = int(starter.stdout.readline())
        assert psutil.pid_exists(process)
        starter.send_signal(sent)
        starter.wait(timeout=20)
    deadline = time.monotonic() + 10
    while running(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(process)


def running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
