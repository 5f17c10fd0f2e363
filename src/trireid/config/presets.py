"""Presets: named groups of settings for what a file does not set. They are resolved on loading; a `Config` has none."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trireid.config.nearest import nearest_name
from trireid.errors import ConfigError, printable

Settings = Mapping[str, object]

UPSTREAM_RECIPE: Settings = MappingProxyType(
    {
        "data.mean": (0.5, 0.5, 0.5),
        "data.std": (0.5, 0.5, 0.5),
        "data.augmentation.flip": 0.5,
        "data.augmentation.padding": 10,
        "data.augmentation.erasing": 0.5,
        "model.sie_coefficient": 1.0,
        "model.pife": True,
        "model.sdtps.preset": "reference",
        "train.seed": 1111,
        "train.optimizer": "adam",
        "train.lr": 3.5e-4,
        "train.weight_decay": 1e-4,
        "train.bias_lr_factor": 2.0,
        "train.classifier_lr_factor": 1.0,
        "train.id_weight": 0.25,
        "train.triplet_weight": 1.0,
        "train.triplet_margin": None,
        "train.label_smoothing": 0.1,
        "evaluate.normalise": True,
    }
)
"""Settings that upstream's published files share, apart from those that depend on the data set."""

UPSTREAM_CODE: Settings = MappingProxyType(
    {
        "data.val_ids": 0,
        "data.sampler": "uniform_identity",
        "data.interpolation": "bilinear",
        "data.augmentation.interpolation": "bicubic",
        "data.augmentation.shared_geometry": False,
        "data.augmentation.vertical_flip": 0.0,
        "data.augmentation.padding_mode": "zeros",
        "data.augmentation.jitter": 0.0,
        "data.augmentation.blinding": 0.0,
        "data.augmentation.dihedral_identities": False,
        "model.backbone.position_interpolation": "bilinear",
        "model.hdm_head_width": 64,
        "model.hdm_query": "scaled",
        "train.backbone_bias_lr_factor": 1.0,
        "train.warmup_factor": 0.1,
        "train.warmup_from": "base",
        "train.final_lr_factor": 1e-3,
        "train.final_lr_from": "base",
        "train.cosine_under_warmup": True,
        "train.lr_noise": True,
        "train.clip_grad_norm": 0.0,
        "train.precision": "fp16",
        "evaluate.missing_as": "zeros",
    }
)
"""What upstream's code does independently of its files."""

CLIP_LR = 5e-6  # hard-coded upstream for the CLIP backbone
IMAGENET_LR_FACTOR = 0.8  # hard-coded upstream for the ImageNet backbone, times BASE_LR
IMAGENET_TOWER = ("vit_b16", "vit_base_patch16_224", "vit_base_patch16_224.augreg_in21k")

CLIP_TOWER_CODE: Settings = MappingProxyType(
    {"model.sie_tokens": "cls", "train.camera_lr_from": "base", "train.backbone_lr": CLIP_LR}
)
IMAGENET_TOWER_CODE: Settings = MappingProxyType({"model.sie_tokens": "all", "train.camera_lr_from": "backbone"})
"""What upstream's code does with each of its backbones; in the second, the camera embedding belongs to the backbone."""

PRESETS: Mapping[str, Settings] = MappingProxyType(
    {
        "none": MappingProxyType({}),
        "parity": MappingProxyType({**UPSTREAM_RECIPE, **UPSTREAM_CODE, **CLIP_TOWER_CODE}),
    }
)


TOWER_SETTINGS = ("train.backbone_lr", "model.backbone.drop_path")
"""What upstream sets by backbone: the preset has the values of CLIP; those of the ImageNet backbone must be given."""


def preset_settings(name: object, given: Settings = MappingProxyType({})) -> Settings:
    """Settings of a preset by dotted path.

    Args:
        name: name of the preset.
        given: given values of `TOWER_SETTINGS` and `model.backbone.name`; None if not given.

    Raises:
        ConfigError: the name is unknown, or the ImageNet backbone is used without its settings.
    """
    if name is None:  # how YAML reads an empty value and `null`
        name = "none"
    if not isinstance(name, str) or name not in PRESETS:
        close = nearest_name(str(name), list(PRESETS), cutoff=0.6)
        hint = f"; the nearest is {close}" if close else ""
        raise ConfigError(f"preset: given {printable(repr(name), limit=80)}, allowed is {' or '.join(PRESETS)}{hint}")
    if name != "parity" or given.get("model.backbone.name") not in IMAGENET_TOWER:
        return PRESETS[name]
    missing = [path for path in TOWER_SETTINGS if given.get(path) is None]
    if missing:
        raise ConfigError(
            f"preset parity is made for the CLIP backbone; for {given['model.backbone.name']} also give "
            f"{' and '.join(missing)} (upstream: {IMAGENET_LR_FACTOR} x train.lr, and MODEL.DROP_PATH, by "
            "default 0.1)"
        )
    return {**PRESETS[name], **IMAGENET_TOWER_CODE}
