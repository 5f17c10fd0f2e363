"""The cosine of unrelated items, measured on a sample of a gallery."""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from trireid.errors import InputError
from trireid.gallery.engine import Engine
from trireid.gallery.layout import Layout, unrelated_cosine

SAMPLE = 1000
"""Items that it is measured on; those with the smallest hashes of their keys, so that the same items give the same."""


def measured(engine: Engine, layout: Layout) -> tuple[float, int]:
    """The cosine, and the number of items that it comes from.

    Raises:
        InputError: the gallery has fewer than two items.
    """
    everything = (row["key"] for page in engine.scan("") for row in page)
    keys = sorted(everything, key=lambda key: sha256(key.encode()).digest())[:SAMPLE]
    if len(keys) < 2:
        raise InputError(f"unrelated items are measured on at least two items, the gallery has {len(keys)}")
    rows = list(engine.fetch(keys, width=layout.row_width).values())
    rows.sort(key=lambda row: row["key"].encode())  # sums depend on the order
    codes = np.array([row["presence"] for row in rows])
    features = np.concatenate([layout.features(row["vector"][None], int(row["presence"])) for row in rows])
    return unrelated_cosine(features, codes, layout), len(rows)
