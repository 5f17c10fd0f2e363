"""Reads the JSON files that benchmarks write and go on from; imported by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trireid.errors import RunError, printable
from trireid.typed_json import read_object


def read_results(path: Path, *lists: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: of the file.
        lists: names of entries that must be lists.

    Raises:
        RunError: the file cannot be read, or is another one.
    """
    try:
        found = read_object(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({printable(str(error), limit=120)}): remove or restore it") from None
    for name in lists:
        if not isinstance(found.get(name), Sequence):
            raise RunError(f"{path} has no list {name!r}: it was not written for this; give another file")
    return found
