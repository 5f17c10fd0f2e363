"""From settings to a model: the only file that knows both the configuration and the modules."""

from __future__ import annotations

import logging
import math

import torch

from trireid.config.schema import ModelConfig
from trireid.errors import ConfigError
from trireid.models.atmoe import ATMoE
from trireid.models.backbone import Backbone, create_vit
from trireid.models.bnneck import BNNeckClassifier
from trireid.models.hdm import HDM
from trireid.models.pife import PIFE
from trireid.models.reid import HDMHead, ReIDModel
from trireid.models.sdtps import PRESETS, SDTPS, SPARSE_RATIOS
from trireid.models.slimming import SlimmingStage
from trireid.models.vit_parts import ViT
from trireid.models.weights import load_backbone_weights
from trireid.types import MODALITIES, NUM_MODALITIES

_log = logging.getLogger(__name__)


def build_model(
    config: ModelConfig,
    *,
    image_size: tuple[int, int],
    num_classes: int,
    num_cameras: int,
    load_pretrained: bool = True,
) -> ReIDModel:
    """The model of a configuration, with start weights.

    Args:
        config: the model section.
        image_size: (height, width) in pixels.
        num_classes: training identities; 0 builds no classifiers.
        num_cameras: training cameras; 0 builds no camera embedding.
        load_pretrained: False leaves fresh weights, for a checkpoint that will fill them all.

    Raises:
        ConfigError: for settings that do not fit each other.
        CheckpointError: if start weights cannot be loaded.
    """
    settings = config.backbone
    vit = create_vit(
        settings.name,
        image_size=image_size,
        patch_size=settings.patch_size,
        width=settings.width,
        depth=settings.depth,
        num_heads=settings.num_heads,
        projection=settings.projection,
        drop_path=settings.drop_path,
    )
    if load_pretrained:
        _log.info(_load_start(vit, config))
    stages = tuple(SlimmingStage(**stage.model_dump()) for stage in config.slimming)
    backbone = Backbone(
        vit,
        num_cameras=num_cameras,
        sie_coefficient=config.sie_coefficient,
        sie_tokens=config.sie_tokens,
        stages=stages,
        standardise=settings.standardise,
    )
    head = _build_head(config, backbone)
    widths = {"global": NUM_MODALITIES * backbone.dim, "head": head.feature_dim if head is not None else 0}
    widths |= dict.fromkeys(MODALITIES, backbone.dim)
    names = ["global"] if config.global_classifier == "joint" else list(MODALITIES)
    names += ["head"] if head is not None else []
    classifiers = {name: BNNeckClassifier(widths[name], num_classes) for name in names} if num_classes else {}
    pife = PIFE(backbone.dim) if config.pife else None
    return ReIDModel(backbone, pife=pife, head=head, classifiers=classifiers, guide=config.sdtps.guide)


def check_model(config: ModelConfig, *, image_size: tuple[int, int], load_pretrained: bool = True) -> None:
    """Refuse what `build_model` would, within a second: for use before any data are read.

    Start weights of a local file are tried; `check_published_weights` does it for those of a name.
    """
    _check_choice(config)
    with torch.device("meta"):  # shapes without numbers
        model = build_model(config, image_size=image_size, num_classes=1, num_cameras=1, load_pretrained=False)
    if load_pretrained and config.backbone.pretrained not in ("none", "timm"):
        _load_start(model.backbone.vit, config)


def _check_choice(config: ModelConfig) -> None:
    """Refuse settings of the choice that change nothing; checkpoints that hold them are still loaded."""
    settings = config.sdtps
    if config.head != "sdtps":
        return
    keeps_all = (settings.sparse_ratio or SPARSE_RATIOS[settings.preset]) == 1
    if settings.choice == "soft" and keeps_all:
        raise ConfigError(
            f"model.sdtps.choice=soft has no effect with sparse_ratio 1{_of_preset(config)}, which weighs all patches "
            "alike: set model.sdtps.sparse_ratio below 1, such as 0.5, or leave choice out"
        )
    if not settings.keep_all_in_test:
        return
    if settings.choice == "soft":
        raise ConfigError("model.sdtps.keep_all_in_test=true has no effect with choice=soft, which drops nothing")
    if keeps_all:
        raise ConfigError(
            "model.sdtps.keep_all_in_test=true has no effect where training keeps all patches too: set "
            "model.sdtps.sparse_ratio below 1, such as 0.5"
        )


def _of_preset(config: ModelConfig) -> str:
    """Where the share of kept patches comes from, if it was not set."""
    return "" if config.sdtps.sparse_ratio is not None else f" (that of preset {config.sdtps.preset})"


def check_published_weights(config: ModelConfig, *, image_size: tuple[int, int]) -> None:
    """Fetch published start weights if the settings name any, and try them before the long work of decoding images.

    Raises:
        CheckpointError: there are none of that name, they cannot be downloaded, or do not fit.
    """
    if config.backbone.pretrained == "timm":
        with torch.device("meta"):
            model = build_model(config, image_size=image_size, num_classes=1, num_cameras=1, load_pretrained=False)
        _load_start(model.backbone.vit, config)


def _load_start(vit: ViT, config: ModelConfig) -> str:
    settings = config.backbone
    return load_backbone_weights(
        vit,
        name=settings.name,
        pretrained=settings.pretrained,
        interpolation=settings.position_interpolation,
        image_size=settings.pretrained_image_size,
        first_blocks=settings.depth is not None,
    )


def _build_head(config: ModelConfig, backbone: Backbone) -> SDTPS | HDMHead | None:
    if config.head == "none":
        return None
    if config.head == "sdtps":
        settings = config.sdtps
        if settings.scoring == "cut" and not any(stage.guidance != "none" for stage in config.slimming):
            raise ConfigError(
                "model.sdtps.scoring=cut takes the scores of a cut: give model.slimming, or scoring=guided"
            )
        choices = {
            "relaxation": settings.relaxation,
            "noise": settings.noise,
            "mask": settings.mask,
            "normalisation": settings.normalisation,
            "learned_guides": settings.learned_guides,
            "reader": settings.reader,
            "scoring": settings.scoring,
            "choice": settings.choice,
            "spectrum_weight": settings.spectrum_weight,
        }
        chosen = {name: choice for name, choice in choices.items() if choice is not None}
        return SDTPS(
            backbone.dim,
            backbone.num_patches,
            grid=None if config.slimming else backbone.grid,
            sparse_ratio=settings.sparse_ratio or SPARSE_RATIOS[settings.preset],
            aggr_ratio=settings.aggr_ratio,
            beta=settings.beta,
            tau=settings.gumbel_tau,
            use_gumbel=settings.use_gumbel,
            scores=settings.scores,
            keep_all_in_test=settings.keep_all_in_test,
            guide_gradient=settings.guide_gradient,
            contrast=settings.contrast,
            cells=settings.cells,
            place_grid=backbone.grid,
            **{**PRESETS[settings.preset], **chosen},
        )
    if backbone.dim % config.atmoe_heads:
        raise ConfigError(f"model.atmoe_heads is {config.atmoe_heads}; it must divide the feature width {backbone.dim}")
    hdm = _build_hdm(config, backbone.dim)
    atmoe = ATMoE(backbone.dim, num_heads=config.atmoe_heads) if config.head == "hdm_atmoe" else None
    if atmoe is not None and config.hdm_batch_norm:
        raise ConfigError("model.hdm_batch_norm is for model.head=hdm: the experts of hdm_atmoe have their own")
    return HDMHead(hdm, atmoe, batch_norm=config.hdm_batch_norm)


def _build_hdm(config: ModelConfig, dim: int) -> HDM:
    if config.hdm_head_width is None:
        num_heads = math.gcd(dim, 8)
    else:
        num_heads = max(1, dim // config.hdm_head_width)
        if dim % num_heads:
            raise ConfigError(
                f"model.hdm_head_width is {config.hdm_head_width}, which makes {num_heads} heads of the feature width "
                f"{dim}; it must make a number that divides the width"
            )
    return HDM(dim, num_heads=num_heads, query_std=dim**-0.5 if config.hdm_query == "scaled" else 1.0)
