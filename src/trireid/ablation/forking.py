"""Runs as forks of one process that has imported everything: each starts in a fraction of a second, isolated as ever.

Starting Python and importing torch takes seconds of a core, for each of hundreds of short runs. A server process
imports it all once and is forked for each run. It never touches CUDA, so that every fork can initialise it anew.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType

PRELOADED = (
    "torch",
    "torch.utils.tensorboard",
    "trireid.cli.app",
    "trireid.cli.train",
    "trireid.train.loop",
    "trireid.visualize.selections",
)
_NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""With it torch asks for CUDA devices without initialising CUDA, which a forked process could not use then."""


class ForkedRun:
    """A command of `trireid` in a process of its own, with the interface of `subprocess.Popen` as far as it is used.

    Args:
        arguments: of the command, such as `["train", "--config", ...]`.
        log: file that its output is appended to.
        environment: all variables of its environment.
    """

    def __init__(self, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        context = _context()
        self._process = context.Process(  # type: ignore[attr-defined]
            target=run_command, args=(list(arguments), str(log), dict(environment))
        )
        before = os.environ.get(_NVML_CHECK)
        os.environ[_NVML_CHECK] = "1"  # the server inherits it when the first run starts it
        try:
            with _program_hidden():
                self._process.start()
        finally:
            if before is None:
                del os.environ[_NVML_CHECK]
            else:
                os.environ[_NVML_CHECK] = before

    @property
    def returncode(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.returncode

    def terminate(self) -> None:
        """End it by SIGTERM."""
        self._process.terminate()

    def wait(self) -> int | None:
        """Wait for its end."""
        self._process.join()
        return self.returncode


def can_fork() -> bool:
    """Whether the system has fork servers; elsewhere each run starts a Python of its own."""
    return "forkserver" in multiprocessing.get_all_start_methods()


def run_command(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    """What a fork does: its output goes to the log, then the command runs as if it had been typed."""
    with Path(log).open("ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    # The server's own streams may be closed or buffered for a terminal.
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))  # the library has read the variable of the server
    sys.argv = ["trireid", *arguments]
    runpy.run_module("trireid", run_name="__main__", alter_sys=False)


@contextmanager
def _program_hidden() -> Iterator[None]:
    """Keep a fork from running the program that starts it once more, as multiprocessing does to import its functions.

    A script of a user would otherwise start its own runs again in each of them.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


def _context() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context
