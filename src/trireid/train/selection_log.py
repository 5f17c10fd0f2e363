"""The selection of patches in a few fixed test triplets during training: maps and statistics."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trireid.errors import TrireidError
from trireid.evaluation.features import evaluation_mode
from trireid.models.guidance import guide_shares
from trireid.models.reid import ReIDModel
from trireid.models.sdtps import ALL_SCORES, SDTPS
from trireid.models.selection_statistics import selection_statistics
from trireid.train.inputs import EvaluationSplit
from trireid.types import ReIDOutput

_log = logging.getLogger(__name__)

NUM_ITEMS = 4
"""Number of triplets, spread evenly over the queries and the same in every epoch."""

FAILURES = (OSError, RuntimeError, ValueError, TypeError, LookupError, ImportError, TrireidError)
"""Errors of drawing that must not stop a run: of images, memory, fonts, packages."""

Pixels = NDArray[np.uint8]
SelectionNumbers = dict[str, dict[str, float]]
"""Statistics of the selection, by stage and name."""
Draw = Callable[[ReIDOutput, Tensor, Sequence[str]], dict[str, Pixels]]
"""Makes pictures by tag from the output of the model, the pixels `(B, M, 3, H, W)` and the names of the triplets."""


def watch_selection(
    model: nn.Module, split: EvaluationSplit, *, device: torch.device, dtype: torch.dtype | None, draw: Draw | None
) -> tuple[SelectionNumbers, dict[str, Pixels]]:
    """Statistics and maps of the patches that a model selects in `NUM_ITEMS` queries; does not change random numbers.

    Args:
        model: on `device`; keeps its training mode.
        split: gives the queries.
        device: where the model runs.
        dtype: autocast type; None: no autocast.
        draw: makes the pictures; None: statistics only.

    Returns:
        Numbers by stage and name, `selection_statistics` and `guide_shares` (those without a value left out), and
        pictures `(H, W, 3)` by tag. Both empty where nothing is selected, or where it failed, which is logged.
    """
    if not isinstance(model, ReIDModel) or not (isinstance(model.head, SDTPS) or model.backbone.stages):
        return {}, {}
    try:
        dataset: Any = split.query_loader.dataset
        rows = sorted({index * len(dataset) // NUM_ITEMS for index in range(NUM_ITEMS)})
        batch = dataset.__getitems__(rows)
        # As in training and evaluation, the model checks for absent modalities only where some are absent.
        present = None if bool(batch.present.all()) else batch.present.to(device)
        moved = batch.to(device)
        with evaluation_mode(model), torch.inference_mode():
            images = split.transform(moved.images, moved.present)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                output = model(images, present=present, camera=moved.camera)
        names = [split.query_records[row].name for row in rows]
        return _numbers(model, output), {} if draw is None else draw(output, batch.images, names)
    except FAILURES as error:  # a picture must never cost a run
        _log.warning("the selection of this epoch could not be drawn: %s", error)
        return {}, {}


def _numbers(model: ReIDModel, output: ReIDOutput) -> SelectionNumbers:
    """Statistics by stage; what is not a number is left out."""
    present = output.present.cpu()
    found: dict[str, dict[str, float]] = {}
    for name, selection in output.selection.items():
        found[name] = selection_statistics(selection.map(Tensor.cpu), present)
    for stage in model.backbone.stages.values():
        name = f"block{stage.after_block}"
        if name in found:
            found[name] |= guide_shares(stage.guidance, present)
    if isinstance(model.head, SDTPS) and model.head.scoring == "guided" and model.head.scores == ALL_SCORES:
        found["sdtps"] |= guide_shares("sdtps", present, beta=model.head.beta)
    return {
        name: {key: value for key, value in values.items() if math.isfinite(value)} for name, values in found.items()
    }
