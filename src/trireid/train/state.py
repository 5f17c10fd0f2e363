"""The state from which a stopped run is resumed: weights, optimiser, gradient scaler, epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.optim import Optimizer

from trireid.data.labels import LabelMap
from trireid.errors import RunError
from trireid.files import check_regular, replacing
from trireid.models.untrusted import DAMAGE
from trireid.models.weights import load_tensors
from trireid.train.run_files import OTHER_OUTPUT, Figures
from trireid.typed_json import checked

FORMAT_VERSION = 1

StateDict = dict[str, Any]
"""What `state_dict()` of an optimiser or a gradient scaler gives."""


@dataclass(frozen=True)
class TrainingState:
    """The state after an epoch. Generators need no state: every epoch is seeded by its number.

    Attributes:
        epoch: last finished epoch.
        model: weights and buffers by name.
        optimizer: state of the optimiser, with its groups.
        scaler: state of the fp16 gradient scaler, empty where there is none.
        label_map: `LabelMap.to_dict()`, to detect that the data changed.
        seconds: training time so far.
        untrained: metrics of the untrained model, empty where not measured.
        value_range: of each modality, as resolved (`data.range`); empty in the files of older versions.
    """

    epoch: int
    model: dict[str, Tensor]
    optimizer: StateDict
    scaler: StateDict
    label_map: dict[str, list[str]]
    seconds: float
    untrained: Figures
    value_range: dict[str, object] = field(default_factory=dict)


def save_state(path: Path, state: TrainingState) -> None:
    """Write the state, whole or not at all.

    Raises:
        RunError: The folder cannot be written or the disk is full.
    """
    content = {"format": FORMAT_VERSION} | {name: getattr(state, name) for name in TrainingState.__annotations__}
    with replacing(path, advice=OTHER_OUTPUT) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how torch's file writer reports a full disk
            raise RunError(f"cannot write {path}: {error}; free some space or {OTHER_OUTPUT}") from error


def find_state(path: Path) -> TrainingState | None:
    """The saved state of a run; None where there is none yet.

    Raises:
        RunError: It is damaged or of another version.
    """
    return load_state(path) if path.exists() else None


def load_state(path: Path) -> TrainingState:
    """Read a state on the CPU, without running any code of the file.

    Raises:
        RunError: It is damaged or of another version.
    """
    try:
        check_regular(path)
        content = load_tensors(path)
        version = content.pop("format")
        if version != FORMAT_VERSION:
            raise RunError(f"{path} has format {version}, this version reads {FORMAT_VERSION}: train again")
        state = TrainingState(**content)
        _check_types(state)
        return state
    except DAMAGE as error:
        raise RunError(
            f"{path} is damaged ({' '.join(str(error).split())[:200]}): delete the folder {path.parent} and resume; "
            "training then starts from the first epoch"
        ) from error


def _check_types(state: TrainingState) -> None:
    """Raise ValueError, one line, where a part is not of the type that `save_state` writes."""
    numbers = {"epoch": int, "seconds": float}
    for name in TrainingState.__annotations__:
        value, expected = getattr(state, name), numbers.get(name, dict)
        right = isinstance(value, expected) and not isinstance(value, bool)
        if not right or (expected is not dict and not 0 <= value < 1e12):
            raise ValueError(f"{name} is a {type(value).__name__}, not a {expected.__name__}")
    groups, slots = state.optimizer.get("param_groups"), state.optimizer.get("state")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise ValueError("optimizer.param_groups is not a list of groups")
    if not isinstance(slots, dict) or not all(isinstance(slot, dict) for slot in slots.values()):
        raise ValueError("optimizer.state is not a table of parameters")
    checked(TypeAdapter(Figures), state.untrained)


def restore(
    state: TrainingState,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    scaler: Any,
    label_map: LabelMap,
    value_range: dict[str, object] | None = None,
) -> None:
    """Restore the state of a model, its optimiser and its gradient scaler (None: no scaler).

    Raises:
        RunError: The data set has other identities, cameras or values than before, or the model is another one.
    """
    if state.label_map != label_map.to_dict():
        raise RunError(
            "the training identities or cameras are not those that the run to resume was trained on: give the same "
            "data, or start another run with output=..."
        )
    if state.value_range and value_range is not None and state.value_range != value_range:
        raise RunError(
            f"the training images have the range of values {value_range}, and the run to resume was trained with "
            f"{state.value_range}: give the same images, or start another run with output=..."
        )
    try:
        model.load_state_dict(state.model, strict=True)
        optimizer.load_state_dict(state.optimizer)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"the saved state does not fit the model ({reason}): start another run, output=...") from error
    if scaler is not None and state.scaler:
        scaler.load_state_dict(state.scaler)
