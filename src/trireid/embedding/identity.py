"""What a model is, as far as its features go: a fingerprint of weights and settings, and the layout of a feature."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from trireid.config.schema import Config
from trireid.embedding.embeddings import ModelIdentity
from trireid.errors import InputError
from trireid.evaluation.features import RANKED_FEATURES
from trireid.models.reid import ReIDModel
from trireid.names import Centring
from trireid.train.checkpoint import Checkpoint
from trireid.types import MODALITY_BLOCKS, NUM_MODALITIES, Blocks, join_blocks

FINGERPRINT_FORMAT = "trireid fingerprint 1"
TRAINING_ONLY = ("classifiers.",)
"""Beginnings of the names of weights that no feature depends on."""
START_WEIGHTS = {"backbone": {"pretrained", "pretrained_image_size", "position_interpolation"}}
"""Settings of the model that say where its training started; the weights themselves are in the fingerprint."""
DATA_SETTINGS = ("image_size", "mean", "std", "interpolation", "range", "modalities")
"""Settings of the data that change the input of the model."""


def model_identity(checkpoint: Checkpoint, model: ReIDModel, *, feature: str = "joint") -> ModelIdentity:
    """What vectors of a feature of a checkpoint are made by.

    Args:
        checkpoint: the content of the file.
        model: the model that was built for it.
        feature: `global`, `head` or `joint`.

    Raises:
        InputError: the model has no such feature.
    """
    blocks, width = feature_layout(model, feature)
    settings = checkpoint.config
    height, size = settings.data.image_size
    name = checkpoint.path.name if checkpoint.path.parent.name == "" else "/".join(checkpoint.path.parts[-2:])
    about = f"{name}: {settings.model.backbone.name}, head {settings.model.head}, {height} x {size}"
    centring: Centring = "train" if settings.evaluate.centring == "train" else "none"
    about += ", centred" if centring == "train" else ""
    return ModelIdentity(fingerprint(checkpoint), feature, blocks, width, about, version("trireid"), centring)


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 over all that a feature depends on: equal on every machine, and for every type that stores the weights.

    It covers, in this order: the settings of `feature_settings` as JSON with sorted names; and for each weight, sorted
    by name, its name, shape and values as little-endian float32 (whole numbers as int64). Weights of classifiers are
    left out. The mean that is subtracted from features counts as a weight.
    """
    cameras = checkpoint.label_map.cameras if checkpoint.config.model.sie_coefficient > 0 else ()
    described = {**feature_settings(checkpoint.config), "cameras": list(cameras)}
    digest = hashlib.sha256(f"{FINGERPRINT_FORMAT}\n{json.dumps(described, sort_keys=True)}\n".encode())
    weights = dict(checkpoint.model_state)
    if checkpoint.config.evaluate.centring == "train":
        weights |= {f"centre.{name}": mean for name, mean in checkpoint.centre.items()}
    for name, value in sorted(weights.items()):
        if not name.startswith(TRAINING_ONLY):
            digest.update(f"{name} {list(value.shape)}\n".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def feature_settings(config: Config) -> dict[str, Any]:
    """The settings that change a feature: those of the model that differ from their defaults, and those of its input.

    Settings at their default are left out, so that a setting which a later version adds changes no fingerprint.
    """
    model = config.model.model_dump(mode="json", exclude_defaults=True, exclude=START_WEIGHTS)
    data = config.data.model_dump(mode="json", include=set(DATA_SETTINGS))
    return {"model": _without_empty(model), "data": data}


def feature_layout(model: ReIDModel, feature: str) -> tuple[Blocks, int]:
    """The blocks of a feature, and its width.

    Raises:
        InputError: the model has no such feature.
    """
    parts: dict[str, tuple[Blocks, int]] = {"global": (MODALITY_BLOCKS, NUM_MODALITIES * model.backbone.dim)}
    if model.head is not None:
        parts["head"] = (model.head.blocks, model.head.feature_dim)
    if feature not in RANKED_FEATURES or feature not in (*parts, "joint"):
        known = ", ".join(name for name in RANKED_FEATURES if name in (*parts, "joint"))
        raise InputError(f"the model has no feature {feature!r}: choose {known}")
    if feature != "joint":
        return parts[feature]
    return join_blocks(list(parts.values())), sum(width for _, width in parts.values())


def _without_empty(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Without sections of which nothing is left."""
    kept = {name: _without_empty(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
    return {name: value for name, value in kept.items() if value != {}}


def _bytes(value: Tensor) -> bytes:
    dtype = torch.float32 if value.is_floating_point() else torch.int64
    array = value.detach().to("cpu", dtype).contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
