"""Start training from a checkpoint of another run: the ViT, and every other part with the same settings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trireid.config.schema import Config
from trireid.data.labels import LabelMap
from trireid.errors import CheckpointError
from trireid.models.backbone import timm_model_name
from trireid.models.reid import ReIDModel
from trireid.models.weights import check_values, read_metadata, start_file
from trireid.train.checkpoint import Checkpoint, is_checkpoint, load_checkpoint

_PARTS = {
    "cuts inside the ViT": "backbone.predictors.",
    "PIFE": "pife.",
    "head": "head.",
    "classifiers": "classifiers.",
}
_CAMERAS = "backbone.camera_embedding.weight"


def start_checkpoint(config: Config) -> Checkpoint | None:
    """The checkpoint that `model.backbone.pretrained` names; None where it names something else.

    Raises:
        CheckpointError: It is damaged, or its ViT is of another kind than in the settings, even if the shapes agree.
    """
    ours = config.model.backbone
    if ours.pretrained in ("none", "timm"):
        return None
    path = start_file(ours.pretrained)
    if not is_checkpoint(read_metadata(path)):
        return None
    checkpoint = load_checkpoint(path)
    theirs = checkpoint.config.model.backbone
    kinds = [(_architecture(each.name), each.num_heads) for each in (theirs, ours)]
    if kinds[0] != kinds[1]:
        shown = [name if heads is None else f"{name} with num_heads={heads}" for name, heads in kinds]
        raise CheckpointError(
            f"{path} holds the backbone {shown[0]}, the settings say {shown[1]}: give model.backbone.name and "
            "num_heads as that run had them, or other start weights"
        )
    return checkpoint


def fill_from(model: ReIDModel, checkpoint: Checkpoint, *, config: Config, label_map: LabelMap) -> tuple[str, ...]:
    """Fill the parts of a model beside its ViT, which `build_model` has loaded, with those of a checkpoint.

    A part is loaded as a whole if its settings and the shapes of all its tensors agree, and classifiers if the
    identities are the same. A camera gets the vector of the camera of the same name if both data sets have the same
    format, else the mean of all.

    Args:
        model: to fill.
        checkpoint: of another run.
        config, label_map: of this run.

    Returns:
        Lines for the log: what was loaded, and why each other part was not.

    Raises:
        CheckpointError: The values are no weights.
    """
    check_values(checkpoint.model_state, source=checkpoint.path)
    own, given = model.state_dict(), checkpoint.model_state
    taken: dict[str, Tensor] = {}
    counts, lines = [], []
    for part, prefix in _PARTS.items():
        theirs, ours = _under(prefix, given), _under(prefix, own)
        if not theirs and not ours:
            continue
        reason = _why_not(part, theirs, ours, checkpoint=checkpoint, config=config, label_map=label_map)
        if reason is None:
            taken |= theirs
            counts.append(f"{part} ({len(theirs)} tensors)")
        else:
            lines.append(f"not taken: {part} ({len(theirs)} tensors): {reason}")
    if _CAMERAS in own and _CAMERAS in given:
        taken[_CAMERAS], line = _cameras(given[_CAMERAS], checkpoint, config=config, label_map=label_map)
        lines.insert(0, line)
    elif _CAMERAS in own or _CAMERAS in given:
        lines.append(f"not taken: camera embedding: {'the file' if _CAMERAS in own else 'this model'} has none")
    model.load_state_dict({**own, **taken}, strict=True)
    first = f"taken from {checkpoint.path} (epoch {checkpoint.epoch}) beside the ViT: {', '.join(counts) or 'nothing'}"
    return first, *lines


def _architecture(name: str) -> str:
    """The timm name without its tag, which names weights and no other model."""
    return name if name == "tiny" else timm_model_name(name).split(".")[0]


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def _why_not(
    part: str,
    theirs: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    *,
    checkpoint: Checkpoint,
    config: Config,
    label_map: LabelMap,
) -> str | None:
    """Why a part of the checkpoint cannot be loaded; None where it can."""
    if not theirs or not ours:
        return "the file has none, here it starts fresh" if ours else "this model has none"
    before, now = checkpoint.config.model, config.model
    if part == "head" and before.head != now.head:
        return f"{before.head} there, {now.head} here"
    if part == "head" and now.head == "sdtps" and before.sdtps != now.sdtps:
        names = [name for name, value in before.sdtps if value != getattr(now.sdtps, name)]
        return f"other settings (model.sdtps: {', '.join(names)})"
    if part == "head" and now.head == "hdm_atmoe" and before.atmoe_heads != now.atmoe_heads:
        return f"model.atmoe_heads is {before.atmoe_heads} there, {now.atmoe_heads} here"
    if part == "classifiers" and checkpoint.label_map.identities != label_map.identities:
        return f"other identities ({len(checkpoint.label_map.identities)} there, {len(label_map.identities)} here)"
    if part == "cuts inside the ViT" and before.slimming != now.slimming:
        return "other settings (model.slimming)"
    differing = sorted(theirs.keys() ^ ours.keys())
    differing += [name for name in theirs.keys() & ours.keys() if theirs[name].shape != ours[name].shape]
    return f"{len(differing)} tensors differ in name or shape ({', '.join(differing[:2])})" if differing else None


def _cameras(table: Tensor, checkpoint: Checkpoint, *, config: Config, label_map: LabelMap) -> tuple[Tensor, str]:
    """The camera table `(c, D)` for the cameras of this run, and a line about it."""
    one_format = checkpoint.config.data.format == config.data.format
    mean, known = table.mean(dim=0), checkpoint.label_map.cameras
    places = [known.index(name) if one_format and name in known else None for name in label_map.cameras]
    rows = torch.stack([mean if place is None else table[place] for place in places])
    num_mean = places.count(None)
    line = f"camera embedding: {len(places) - num_mean} of {len(places)} cameras have the vector of their name"
    return rows, f"{line}, {num_mean} the mean of the {len(known)} of the file" if num_mean else line
