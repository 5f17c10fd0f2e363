"""Refuse to import torch in an address space that is too small for it.

Its libraries end in an abort, an endless loop or a wrong exception where `ulimit -v` cuts their import short, so
nothing could be said afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from trireid.errors import TrireidError

# The CUDA build was seen to fail up to 3.7 GB on two cores; a thread of every further core maps some more.
_CUDA_BUILD = 4_200_000_000  # bytes
_CUDA_LIBRARIES = ("libtorch_cuda.so",)


class _RoomForTorch(MetaPathFinder):
    """Stands before the other finders and looks at one name."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torch":
            spec = PathFinder.find_spec(fullname, path)
            if spec is not None and spec.origin is not None and _is_cuda_build(Path(spec.origin).parent):
                raise TrireidError(
                    f"this process may use {self._limit / 1e9:.1f} GB of address space and torch needs "
                    f"{_CUDA_BUILD / 1e9:.1f} GB: raise the limit (ulimit -v)"
                )
        return None


def _is_cuda_build(folder: Path) -> bool:
    return any((folder / "lib" / name).exists() for name in _CUDA_LIBRARIES)


def watch_address_space() -> None:
    """Have the import of torch refused in one line where `ulimit -v` leaves too little for it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _CUDA_BUILD:
        sys.meta_path.insert(0, _RoomForTorch(limit))
