"""A model's step into 8-bit floating point before it computes features: scales from the first batch that it sees."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from trireid.evaluation.features import evaluation_mode, run_model
from trireid.models.low_precision import WORTHWHILE, use_float8
from trireid.models.reid import ReIDModel
from trireid.types import Batch

_log = logging.getLogger(__name__)

FEW_ITEMS = 16
"""Items below which the rounding is measurably less exact."""


def into_float8(
    model: ReIDModel, batch: Batch, *, device: torch.device, transform: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Put the large products of a model's blocks into e4m3, calibrated by one batch; the log says so.

    Args:
        model: on `device`, its blocks not compiled yet; it is changed for good.
        batch: of pixels, on any device; some hundred images of the kind that the model will see.
        device: where the model runs, see `models.low_precision.check_float8`.
        transform: makes images of pixels.

    Raises:
        InputError: the backbone has no such products, or they have widths that are not possible.
    """

    def calibrate() -> None:
        run_model(
            model, batch, present=batch.present, device=device, dtype=torch.bfloat16, transform=transform
        )  # fmt: skip

    with evaluation_mode(model):
        count = use_float8(model.backbone.vit, calibrate)
    level = logging.WARNING if len(batch.item) < FEW_ITEMS else logging.INFO
    few = f", which are few: {FEW_ITEMS} or more give closer features" if len(batch.item) < FEW_ITEMS else ""
    _log.log(
        level,
        "precision fp8: %d products of the backbone's blocks (%s) in e4m3, the rest in bf16; scales and rounding are "
        "from the first %d items%s",
        count, ", ".join(WORTHWHILE), len(batch.item), few,
    )  # fmt: skip
