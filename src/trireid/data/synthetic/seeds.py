"""Random numbers that depend on what they are for and on nothing else, so that the order of work does not matter."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """A generator whose stream depends only on the seed and the purpose, on every machine."""
    key = "\x1f".join([str(seed), *map(str, purpose)]).encode()
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key).digest()[:16], "little")))
