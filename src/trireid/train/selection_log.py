"""What the model selects of a few fixed test triplets while it trains: maps, and statistics as numbers."""

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
from trireid.models.sdtps import SDTPS
from trireid.models.selection_statistics import selection_statistics
from trireid.train.inputs import EvaluationSplit
from trireid.types import ReIDOutput

_log = logging.getLogger(__name__)

NUM_ITEMS = 4
"""Triplets that are drawn, evenly over the queries and the same in every epoch."""

FAILURES = (OSError, RuntimeError, ValueError, TypeError, LookupError, ImportError, TrireidError)
"""What drawing may meet: images, memory, fonts, packages."""

Pixels = NDArray[np.uint8]
SelectionNumbers = dict[str, dict[str, float]]
"""Statistics of the selection, by stage and name."""
Draw = Callable[[ReIDOutput, Tensor, Sequence[str]], dict[str, Pixels]]
"""From what the model gave, the pixels `(B, M, 3, H, W)` and names to pictures by tag; training knows no plots."""


def watch_selection(
    model: nn.Module, split: EvaluationSplit, *, device: torch.device, dtype: torch.dtype | None, draw: Draw | None
) -> tuple[SelectionNumbers, dict[str, Pixels]]:
    """Statistics and maps of what a model selects of `NUM_ITEMS` queries; draws no random number that training sees.

    Args:
        model: on `device`; keeps its training mode.
        split: whose queries are drawn.
        device: where the model runs.
        dtype: autocast type, None for none.
        draw: makes the pictures, None for numbers alone.

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
        # As in training and evaluation, a model is only asked to look for absent modalities where some are.
        present = None if bool(batch.present.all()) else batch.present.to(device)
        moved = batch.to(device)
        with evaluation_mode(model), torch.inference_mode():
            images = split.transform(moved.images, moved.present)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                output = model(images, present=present, camera=moved.camera)
        names = [split.query_records[row].name for row in rows]
        return _numbers(model, output), {} if draw is None else draw(output, batch.images, names)
    except FAILURES as error:  # a picture must never cost a run
        _log.warning("the selection of this epoch is not drawn: %s", error)
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
    if isinstance(model.head, SDTPS) and model.head.scoring == "guided":
        found["sdtps"] |= guide_shares("sdtps", present, beta=model.head.beta)
    return {
        name: {key: value for key, value in values.items() if math.isfinite(value)} for name, values in found.items()
    }
