"""Ranges of values for images deeper than those that a model was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trireid.config.schema import Config
from trireid.data.range_settings import with_ranges
from trireid.errors import InputError, printable
from trireid.names import MODALITIES
from trireid.train.checkpoint import Checkpoint

OwnRanges = Mapping[str, tuple[float, float] | str]
"""By modality: (value of black, value of white), or `file` for the percentiles of each file."""


def with_own_ranges(checkpoint: Checkpoint, ranges: OwnRanges | None) -> Checkpoint:
    """The checkpoint with some ranges replaced; the fingerprint of its features follows.

    Raises:
        InputError: a modality or range is none.
    """
    changes: dict[str, Any] = {}
    for name, given in (ranges or {}).items():
        if name not in MODALITIES:
            raise InputError(f"ranges has '{printable(str(name), limit=40)}': the modalities are rgb, nir and tir")
        changes[name] = "file" if given == "file" else _pair(name, given)
    if not changes:
        return checkpoint
    settings = checkpoint.config.data.range.model_copy(update=changes)
    return replace(checkpoint, config=with_ranges(checkpoint.config, settings))


def ranges_in(overrides: Sequence[str], config: Config) -> dict[str, Any]:
    """The ranges that overrides such as `data.range.tir=[0,1]` give, by modality.

    Args:
        overrides: as `load_config` takes them.
        config: the settings with them.
    """
    names = {override.partition("=")[0].strip() for override in overrides}
    given = {name: getattr(config.data.range, name) for name in MODALITIES if f"data.range.{name}" in names}
    return {name: value for name, value in given.items() if value != "auto"}  # `auto` is as the model was trained


def _pair(name: str, given: Any) -> tuple[float, float]:
    try:
        low, high = (float(each) for each in given)
    except (TypeError, ValueError, OverflowError):
        low, high = 0.0, 0.0
    if not -float("inf") < low < high < float("inf"):
        raise InputError(
            f"the range of {name} is {printable(str(given), limit=60)}: give (LOW, HIGH), the values that become black "
            "and white, or 'file' for those of each file"
        )
    return low, high
