"""Torch generators whose stream depends on what it is for and on nothing else."""

from __future__ import annotations

import hashlib

import torch


def seeded_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, for example `seeded_generator(1111, "sampler", epoch)`."""
    key = "\x1f".join([str(seed), *map(str, purpose)]).encode()
    number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1  # torch takes 63 bits without a sign
    return torch.Generator().manual_seed(number)
