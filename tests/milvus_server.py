"""A real Milvus server on this machine for the tier `server`: installed, started, stopped, paused and killed."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("milvus==2.3.5", "setuptools<81")
ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / "build" / "milvus-server"
ISOLATED = ("unshare", "--map-root-user", "--net")
START_SECONDS = 90


def why_not() -> str | None:
    """Why no server can run on this machine; None where one can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the package milvus has a server for Linux on x86-64 only, this is {sys.platform} {platform.machine()}"
    if shutil.which("unshare") is None or subprocess.run([*ISOLATED, "true"], capture_output=True).returncode:
        return "Milvus listens on all interfaces, and this machine allows no network namespace of its own (unshare)"
    return None


def install() -> Path:
    """The Python of an environment of its own with the server, made once; its engine is unpacked at the first start."""
    python = ENVIRONMENT / "bin" / "python"
    complete = ENVIRONMENT / "complete"
    if not complete.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PACKAGES], check=True)
        complete.touch()
    return python


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        address: `http://127.0.0.1:port`.
        process: the id of the process of Milvus itself.
    """

    address: str
    process: int

    def pause(self) -> None:
        """It answers nothing any more; its connections stay open."""
        os.kill(self.process, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.process, signal.SIGCONT)

    def kill(self) -> None:
        """It is gone, and so is its port, from one moment to the next."""
        os.kill(self.process, signal.SIGKILL)


@contextlib.contextmanager
def running(data: Path | None = None) -> Iterator[Server]:
    """A server that is ready, on a free loopback port, with its data in that folder or in a temporary one.

    It ends with the block. Where this process is killed instead, the kernel ends the server with it.
    """
    python = install()
    with contextlib.ExitStack() as stack:
        folder = data or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port, descriptor = listening.getsockname()[1], listening.fileno()
        script = Path(__file__).with_name("milvus_process.py")
        command = [*ISOLATED, str(python), str(script), str(ENVIRONMENT / "engine"), str(folder), str(descriptor)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[descriptor], text=True)
        listening.close()
        stack.callback(end, process)
        yield Server(f"http://127.0.0.1:{port}", first_number(process, folder / "output.log"))


def first_number(process: subprocess.Popen[str], log: Path) -> int:
    """The process id that it prints when it is ready."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if line := process.stdout.readline():
            return int(line)
        time.sleep(0.05)
    last = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    raise RuntimeError(f"Milvus was not ready within {START_SECONDS} seconds; the end of its log:\n{last}")


def end(process: subprocess.Popen[str]) -> None:
    """SIGKILL: its data are thrown away. The server dies with the script that started it."""
    process.kill()
    process.wait()
