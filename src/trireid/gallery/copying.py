"""The rows of a gallery in another one: copied in the order of keys, and compared by a checksum."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from trireid.errors import RunError, printable
from trireid.gallery.engine import COLUMNS, Engine
from trireid.gallery.layout import Layout
from trireid.gallery.rows import Row


def copy_rows(
    source: Engine, target: Engine, layout: Layout, other: Layout, progress: Callable[[int, int], None] | None
) -> str:
    """Copy all items, read them back and compare.

    Args:
        source, target: the target is empty.
        layout, other: how features lie in their rows.
        progress: is called with the number of items that were copied, and of all.

    Returns:
        SHA-256 of all items in the order of their keys, the same on both sides.

    Raises:
        RunError: what was read back differs.
    """
    total, done, digest = source.count(""), 0, sha256()
    for rows in source.scan("", layout.row_width):
        vectors = np.stack([relaid(row, layout, other) for row in rows])
        target.upsert([{name: row[name] for name in COLUMNS} for row in rows], vectors, flush=False)
        for row, vector in zip(rows, vectors, strict=True):
            digest.update(_bytes_of(row, vector))
        done += len(rows)
        if progress is not None:
            progress(done, total)
    target.flush()
    found = checksum(target, other)
    if found != digest.hexdigest() or target.count("") != done:
        raise RunError(
            f"the copy at {printable(target.location)} is not like its source, or the source was changed meanwhile: "
            "nothing was kept of it; copy again"
        )
    return found


def relaid(row: Row, layout: Layout, other: Layout) -> NDArray[np.float32]:
    """The vector of a row as another layout has it; the same layout keeps it to the last bit."""
    if layout == other:
        vector: NDArray[np.float32] = row["vector"]
        return vector
    code = int(row["presence"])
    laid: NDArray[np.float32] = other.rows(layout.features(row["vector"][None], code), code)[0]
    return laid


def checksum(engine: Engine, layout: Layout) -> str:
    """SHA-256 of all items in the order of their keys."""
    digest = sha256()
    for rows in engine.scan("", layout.row_width):
        for row in rows:
            digest.update(_bytes_of(row, row["vector"]))
    return digest.hexdigest()


def _bytes_of(row: Row, vector: NDArray[np.float32]) -> bytes:
    plain = repr([float(row[name]) if name == "time" else str(row[name]) for name in COLUMNS])
    return plain.encode() + np.ascontiguousarray(vector, dtype="<f4").tobytes()
