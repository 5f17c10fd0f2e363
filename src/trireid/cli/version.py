"""`trireid --version`, and with `--verbose` what a report of a fault needs: plain text to paste into an issue."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

GIB = 2**30


def lines(*, verbose: bool = False) -> list[str]:
    """The version of trireid; if `verbose`, also those of its packages, the machine, its devices and threads.

    Only the verbose form imports torch.

    Example:
        >>> lines()[0].split()[0]
        'trireid'
    """
    first = f"trireid {version('trireid')}"
    return [first, *_details()] if verbose else [first]


def _details() -> list[str]:
    import psutil
    import torch

    from trireid.train.device import resolve_device, resolve_precision
    from trireid.train.environment import PACKAGES, git_commit, package_version

    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    shown = {
        "commit": git_commit(Path(__file__).parent) or "not a git checkout",
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        **{name: package_version(name) or "not installed" for name in PACKAGES if name != "trireid"},
        "platform": platform.platform(),
        "cpu": f"{_processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / GIB:.1f} GiB memory",
        "threads": f"{torch.get_num_threads()} (torch)",
        "cuda": torch.version.cuda or "torch was built without CUDA",
        **(_gpus() or {"gpu": "none that torch can use"}),
        "device": f"{device.type} (train.device=auto)",
        "precision": f"{precision} (train.precision=auto)",
    }
    return [f"{name}: {value}" for name, value in shown.items()]


def _gpus() -> dict[str, str]:
    import torch

    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        f"gpu {number}": f"{each.name}, {each.total_memory / GIB:.1f} GiB memory, "
        f"compute capability {each.major}.{each.minor}"
        for number, each in enumerate(found)
    }


def _processor() -> str:
    """The name of the CPU; on Linux only /proc/cpuinfo has it."""
    try:
        entries = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        entries = []
    names = (entry.partition(":")[2].strip() for entry in entries if entry.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
