"""Parts whose modules are imported when first used, so that `trireid.models.sdtps` works after `import trireid`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller of a module's `__getattr__` that a public name has another one now."""
    warnings.warn(f"{old} is now {new}; the old name goes with trireid 0.3.0", FutureWarning, stacklevel=3)


def submodules(package: str) -> Callable[[str], ModuleType]:
    """The `__getattr__` of a package: its modules by name.

    Args:
        package: dotted name, `__name__` in the package's own file.
    """

    def find(name: str) -> ModuleType:
        if name.startswith("_") or find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(f"{package}.{name}")

    return find
