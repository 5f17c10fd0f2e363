"""Start weights of a ViT in the names of timm: its loading code knows the files of many publications."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from trireid.errors import CheckpointError
from trireid.models.untrusted import DAMAGE, one_line
from trireid.models.vit_parts import ViT
from trireid.names import Interpolation


def in_timm_names(
    vit: ViT, state: dict[str, Tensor], *, source: Path, interpolation: Interpolation
) -> dict[str, Tensor]:
    """The tensors in timm's names, patch filters in the size of the model; the position table stays as it is.

    Args:
        vit: the model that they are for.
        state: tensors by name.
        source: their file, for messages.
        interpolation: how patch filters are resized.

    Raises:
        CheckpointError: timm cannot read them for this model.
    """
    # timm resizes the table by a guess at its grid, unless the model has none (or, in older versions, one as long).
    double = copy.copy(vit)
    rename = (eva if isinstance(vit, eva.Eva) else vision_transformer).checkpoint_filter_fn
    double._parameters = {**vit._parameters, "pos_embed": None if _spares_tables(rename) else _table_as_long(state)}
    try:
        with redirect_stdout(io.StringIO()):  # timm prints what it leaves out of DINOv3's own files: biases of zeros
            converted = rename(state, double, interpolation=interpolation, antialias=interpolation == "bicubic")
    except DAMAGE as error:
        raise CheckpointError(f"weight file {source} does not fit the backbone: {one_line(error)}") from error
    return dict(converted)


@cache
def _spares_tables(rename: Callable[..., dict[str, Tensor]]) -> bool:
    """Whether timm leaves the table of a file as it is where the model has none: its versions from 2026 on do."""
    try:
        rename({"pos_embed": torch.zeros(1, 2, 1)}, SimpleNamespace(pos_embed=None))
    except AttributeError:
        return False
    return True


def _table_as_long(state: Mapping[str, Tensor]) -> nn.Parameter:
    """A table without numbers that is as long as that of a file, under any of the names that timm knows."""
    ends = ("visual.positional_embedding", "pos_embed", "positional_embedding")
    tables = [value for end in ends for key, value in state.items() if key.endswith(end)]
    length = tables[0].shape[-2] if tables and tables[0].dim() > 1 else 0
    return nn.Parameter(torch.empty(1, length, 1, device="meta"))
