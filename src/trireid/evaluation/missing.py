"""Evaluation with modalities withheld: the cases, and what withholding does to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from torch import Tensor

from trireid.errors import InputError
from trireid.types import MODALITIES, Batch

"""A withheld modality is left out by the model (`absent`), or seen by it as a normalised image of zeros (`zeros`)."""


def subset_cases(modalities: Sequence[str] = MODALITIES) -> dict[str, tuple[str, ...]]:
    """What is withheld, by the letters of what remains: rnt, nt, rt, rn, t, n, r, for three modalities.

    Args:
        modalities: those that are used, in the order of `MODALITIES`.
    """
    withheld = [gone for size in range(len(modalities)) for gone in combinations(modalities, size)]
    return {"".join(name[0] for name in modalities if name not in gone): gone for gone in withheld}


def withhold(present: Tensor, images: Tensor, modalities: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Take modalities away: not present, and the normalised image is 0.

    Args:
        present: `(B, M)` bool.
        images: `(B, M, 3, H, W)` normalised.
        modalities: names out of `MODALITIES`, not all of them; empty leaves everything as it is.

    Returns:
        present `(B, M)` and images `(B, M, 3, H, W)`, new tensors where something was withheld.

    Source: DeMo (AAAI 2025), evaluation with missing modalities.
    Deviation: presence is withheld too, so that a model can leave the modality out; upstream only sets the image to 0
        (`missing_as="zeros"` of `features.extract_features`).

    Raises:
        InputError: an unknown name, or an item would be left without any modality.
    """
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown:
        raise InputError(f"cannot withhold {', '.join(unknown)}; allowed are {', '.join(MODALITIES)}")
    if not modalities:
        return present, images
    kept = present.new_tensor([name not in modalities for name in MODALITIES])  # (M,)
    remaining = present & kept
    num_empty = int((~remaining.any(dim=1)).sum())
    if num_empty:
        raise InputError(
            f"withholding {', '.join(modalities)} leaves {num_empty} item(s) of a batch without any modality; "
            f"withhold fewer, or leave these items out"
        )
    return remaining, images * kept.to(images.device, images.dtype)[:, None, None, None]


def take_shown(batch: Batch, modalities: Sequence[str]) -> Batch:
    """The items of a batch that keep a modality when some are withheld."""
    kept = batch.present.new_tensor([name not in modalities for name in MODALITIES])  # (M,)
    rows = (batch.present & kept).any(dim=1)
    return batch if bool(rows.all()) else Batch(**{name: value[rows] for name, value in vars(batch).items()})


def withhold_batch(batch: Batch, modalities: Sequence[str]) -> Batch:
    """The same batch with modalities withheld, see `withhold`."""
    present, images = withhold(batch.present, batch.images, modalities)
    return replace(batch, present=present, images=images)
