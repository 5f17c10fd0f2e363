"""Random numbers that depend only on a seed and a purpose: generators by purpose, draws by item."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def seeded_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, for example `seeded_generator(1111, "sampler", epoch)`."""
    key = "\x1f".join([str(seed), *map(str, purpose)]).encode()
    number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1  # torch takes 63 unsigned bits
    return torch.Generator().manual_seed(number)


def numpy_generator(seed: int, *purpose: object) -> np.random.Generator:
    """A NumPy generator for one purpose, with the same stream on every machine (the synthetic data depend on it)."""
    key = "\x1f".join([str(seed), *map(str, purpose)]).encode()
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key).digest()[:16], "little")))


def uniform_draws(seed: Tensor, count: int) -> Tensor:
    """Uniform numbers that depend on each item's seed alone, the same on every device.

    Args:
        seed: `(B,)` int64.
        count: draws per item.

    Returns:
        `(B, count)` float32 in [0, 1), multiples of 2 ** -24.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), applied to a counter.
    """
    counter = torch.arange(1, count + 1, device=seed.device) * _signed(0x9E3779B97F4A7C15)
    bits = _mix(_mix(seed)[:, None] + counter)
    return _shift_right(bits, 40).float() * 2.0**-24


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift_right(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, places: int) -> Tensor:
    """Logical shift to the right (that of torch is arithmetic)."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    """The int64 with the same 64 bits."""
    return number - 2**64 if number >= 2**63 else number
