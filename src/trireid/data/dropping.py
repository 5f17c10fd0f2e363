"""Modality dropout: training items lose some of their modalities, so that a model learns to work without them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from trireid.data.randomness import uniform_draws
from trireid.errors import InputError
from trireid.types import modality_subsets

_PURPOSE = 0x6D6F64616C697479
"""Separates these draws from those of the augmentation, which use the same seed."""


def drop_modalities(present: Tensor, seed: Tensor, probability: float) -> Tensor:
    """Presence after dropout; it depends on each item's seed alone, as augmentation does.

    With the given probability, an item keeps a random proper and non-empty subset of the modalities that it has, each
    equally likely. An item with one modality keeps it.

    Args:
        present: `(B, M)` bool.
        seed: `(B,)` int64, the seed of each item's draws.
        probability: that an item loses some of its modalities, in [0, 1].

    Returns:
        `(B, M)` bool, on the device of `present`; what was absent stays absent.

    Raises:
        InputError: the probability is out of range.

    Source: the idea is that of Neverova et al., ModDrop, TPAMI 2016.
    Deviation: one draw per item, not one per modality.
    """
    if not 0.0 <= probability <= 1.0:
        raise InputError(f"modality dropout is {probability}; it must lie in [0, 1]")
    subset = _subset_table(present.shape[1], present.device)  # (E, M)
    allowed = ~(subset & ~present[:, None]).any(dim=-1)  # (B, E): within what the item has
    allowed &= subset.sum(dim=1) < present.sum(dim=1, keepdim=True)  # and less than that
    count = allowed.sum(dim=1)  # (B,)
    chance, which = uniform_draws(seed ^ _PURPOSE, 2).unbind(dim=1)
    place = (which * count).long()  # of the chosen one among those allowed
    chosen = (allowed.cumsum(dim=1) <= place[:, None]).sum(dim=1).clamp(max=len(subset) - 1)
    dropped = (chance < probability) & (count > 0)
    return torch.where(dropped[:, None], subset[chosen], present)


@lru_cache(maxsize=8)
def _subset_table(num_modalities: int, device: torch.device) -> Tensor:
    """Which modalities each non-empty subset has, `(2 ** M - 1, M)` bool.

    It is kept, since a step that is recorded for a GPU may not copy from the memory of the CPU.
    """
    rows = [[modality in members for modality in range(num_modalities)] for members in modality_subsets(num_modalities)]
    return torch.tensor(rows, device=device)
