"""The environment of a run for `environment.json`: versions, device, command line, commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = (
    "trireid",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "numpy",
    "pillow",
    "pydantic",
    "safetensors",
    "simplejpeg",
    "tifffile",
)


def describe_environment(*, device: torch.device, precision: str, num_processes: int, seed: int) -> dict[str, object]:
    """What another person needs to repeat the run, as plain data for JSON."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git_commit": git_commit(Path(__file__).parent),
        "seed": seed,
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({platform.machine()})",
        "precision": precision,
        "num_processes": num_processes,
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda if cuda else None,
        "packages": {name: package_version(name) for name in PACKAGES},
    }


def git_commit(folder: Path) -> str | None:
    """The commit of a checkout, with `+changes` where tracked files differ; None outside one or without git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--match="]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def package_version(package: str) -> str | None:
    """The installed version, None without the package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
