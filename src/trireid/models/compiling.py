"""What is different while torch compiles or exports a model."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from pathlib import Path

import psutil
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

_log = logging.getLogger(__name__)

FAILURES: tuple[type[Exception], ...] = (
    RuntimeError,  # torch's own, of its tracer, its compiler and its recordings
    OSError,  # a folder that cannot be written, a compiler that does not start
    ImportError,
    subprocess.SubprocessError,
    AssertionError,
    AttributeError,
    EOFError,  # this and the next: a damaged file in the compiler's cache
    SyntaxError,
    LookupError,
    TypeError,
    ValueError,
)
"""What compilation and recording may end with. Each has a plain way that gives the same results, so all are caught."""
_CACHE_LOGGERS = ("torch._inductor.codecache", "torch._functorch._aot_autograd.autograd_cache")


@contextmanager
def room_to_compile(num_models: int = 1, *, forgiving: bool = False) -> Iterator[None]:
    """Let the blocks of this many models be compiled in one process, each for up to 16 token counts and modes.

    torch compiles one piece of code 8 times, whatever the models it is of, and runs it plain from then on without a
    word: a model with three cuts, or a later model of a long comparison, would not be what it says. Blocks are not cut
    up for DistributedDataParallel: each is small enough for its gradients to be sent while the next one computes.

    Args:
        num_models: that are compiled.
        forgiving: what cannot be compiled runs plain, with a warning of torch, instead of an error.
    """
    import torch._dynamo.config as dynamo  # takes more than a second, which only compilation is worth

    limit, suppressed = 16 * max(1, num_models), forgiving or dynamo.suppress_errors
    with dynamo.patch(recompile_limit=limit, suppress_errors=suppressed, optimize_ddp=False):
        yield


def is_exporting() -> bool:
    """Whether the model is being turned into a graph for use elsewhere.

    Such a graph has no Python in it: it can neither look at a value to refuse it nor skip absent images.
    """
    asked = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 knows the second alone
    return bool(asked())


def compiler_obstacle(device: str) -> str | None:
    """Why nothing can be compiled for this type of device, as far as one can see without trying; None: it can be."""
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not os.environ.get("CC") and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "there is no C compiler (cc, gcc or clang)"
    return None


def use_compiler_cache() -> Path:
    """Keep what is compiled in the user's cache folder, so that the next run finds it; the folder may be emptied.

    It is `trireid/compiler` in `$XDG_CACHE_HOME` or `~/.cache`. `TORCHINDUCTOR_CACHE_DIR` names another one. A folder
    that others may write to is not used, because its files are run as programs; nor is torch's default, whose name in
    the folder of temporary files others may take first. What is compiled then lasts as long as the program.

    Returns:
        The folder; one that was named by the user may be unusable.
    """
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    default = str(Path(tempfile.gettempdir()) / "torchinductor_")  # torch sets the variable to a folder of this kind
    if given and not given.startswith(default):
        return Path(given)
    folder = _own_cache() or temporary_cache()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    return folder


def start_compile_workers() -> None:
    """Start the processes that compile kernels for a GPU, in the background, long before the first kernel.

    They take seconds to import torch. Kernels that are needed before they are ready are compiled one by one, in this
    process, so that a compilation that finds them ready takes less. `TORCH_WARM_POOL=0` leaves them to the compilation.
    A program that ends before they are ready, such as a run that fails, does not wait for them.
    """
    if os.environ.get("TORCH_WARM_POOL") == "0" or importlib.util.find_spec("triton") is None:
        return
    use_compiler_cache()
    try:
        from torch._inductor.async_compile import AsyncCompile  # torch has no public name for it

        AsyncCompile.warm_pool()
        AsyncCompile.use_process_pool()  # an empty job, without which some versions start no worker
    except FAILURES as error:
        _log.debug("processes for compilation were not started: %s", error)
    # What is registered last runs first, here before torch waits for its processes: at the end of a program, and of a
    # process of multiprocessing, such as a run of an ablation.
    atexit.unregister(_end_busy_workers)
    atexit.register(_end_busy_workers)
    Finalize(None, _end_busy_workers, exitpriority=sys.maxsize)


def _end_busy_workers() -> None:
    """End the processes that still start or compile; torch would wait until they have done so, which takes seconds."""
    for pool in list(getattr(sys.modules.get("torch._inductor.async_compile"), "_pool_set", ())):
        server = getattr(pool, "process", None)
        if not isinstance(server, subprocess.Popen) or not getattr(pool, "pending_futures", None):
            continue  # those that wait for work end by themselves
        with pool.write_lock:
            pool.running = False  # torch then neither waits for them nor reports their end
        workers: list[psutil.Process] = []
        with suppress(psutil.Error):
            workers = psutil.Process(server.pid).children(recursive=True)
        for process in (server, *workers):
            with suppress(psutil.Error):
                process.kill()
        server.wait()


@contextmanager
def damage_counted() -> Iterator[CacheDamage]:
    """Count the files of the compiler's cache that torch cannot read, in place of a traceback of torch for each."""
    found = CacheDamage()
    loggers = [logging.getLogger(name) for name in _CACHE_LOGGERS]
    for logger in loggers:
        logger.addFilter(found)
    try:
        yield found
    finally:
        for logger in loggers:
            logger.removeFilter(found)


class CacheDamage(logging.Filter):
    """Passes all messages of torch but those of files that it cannot read, which it compiles again.

    Attributes:
        count: of such messages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is written."""
        damaged = bool(record.exc_info) and "unable to load" in record.getMessage()
        self.count += damaged
        return not damaged


def forget_compiled() -> None:
    """Let nothing that was compiled or loaded be used again in this process, whatever folder it lies in."""
    from torch._inductor import utils  # torch has no public name for it

    torch.compiler.reset()
    clear = getattr(utils, "clear_caches", None) or getattr(utils, "clear_inductor_caches", None)  # of later versions
    if clear is not None:
        clear()


def temporary_cache() -> Path:
    """A folder that is deleted when the program ends."""
    folder = Path(tempfile.mkdtemp(prefix="trireid-compiler-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _own_cache() -> Path | None:
    """The folder in the user's cache; None where it cannot be used, or others could."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trireid" / "compiler"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        shared = hasattr(os, "getuid") and (
            found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        )
    except (OSError, RuntimeError):  # no home, no room, no permission
        return None
    return None if shared or not os.access(folder, os.W_OK) else folder


class SharedDropPath(nn.Module):
    """Stochastic depth whose rate is a tensor, so that blocks of unlike rates share one compiled form.

    Args:
        rate: probability that the residual of a row is left out in training; the others are scaled up.
        device: of the rows.
    """

    chances: Tensor

    def __init__(self, rate: float, device: torch.device) -> None:
        super().__init__()
        keep = 1.0 - rate
        self.register_buffer(
            "chances", torch.tensor([keep, 1 / keep if keep else 0.0], device=device), persistent=False
        )

    def forward(self, rows: Tensor) -> Tensor:
        """The residual `(R, N, D)`, zeros in the rows that are left out."""
        if not self.training:
            return rows
        kept = torch.rand(rows.shape[0], 1, 1, device=rows.device) < self.chances[0]  # (R, 1, 1)
        return rows * (kept * self.chances[1]).to(rows.dtype)


def share_drop_path(blocks: Iterable[nn.Module]) -> None:
    """Replace the stochastic depth of blocks, whose unlike rates would be compiled one by one; 0 in all: none."""
    places = [
        (block, name, layer)
        for block in blocks
        for name, layer in block.named_children()
        if name in ("drop_path1", "drop_path2")
    ]
    if any(isinstance(layer, DropPath) for _, _, layer in places):
        for block, name, layer in places:
            device = next(block.parameters()).device
            block.add_module(name, SharedDropPath(float(getattr(layer, "drop_prob", 0.0) or 0.0), device))
            block.get_submodule(name).train(block.training)
