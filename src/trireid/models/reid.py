"""The model: backbone, PIFE, head and classifiers put together. Knows tensors only, no settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models.atmoe import ATMoE
from trireid.models.backbone import Backbone, BackboneOutput
from trireid.models.bnneck import BNNeckClassifier
from trireid.models.centre import FeatureCentre
from trireid.models.compiling import is_exporting
from trireid.models.hdm import HDM
from trireid.models.modality import BatchNorm, mask_absent
from trireid.models.pife import PIFE
from trireid.models.sdtps import SDTPS
from trireid.models.slimming import in_original_grid, kept_scores
from trireid.names import GuideName
from trireid.types import MODALITIES, MODALITY_BLOCKS, NUM_MODALITIES, ReIDOutput, Selection


class HDMHead(nn.Module):
    """HDM, optionally followed by ATMoE, read out as one vector `(B, E * D)`.

    Args:
        hdm: gives the subset features.
        atmoe: mixes them.
        batch_norm: normalise them by the batch instead, without weights: what the experts of ATMoE do last, and nothing
            else of them. A control.
    """

    def __init__(self, hdm: HDM, atmoe: ATMoE | None = None, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.hdm, self.atmoe = hdm, atmoe
        self.norm = BatchNorm(hdm.feature_dim, affine=False) if batch_norm else None
        self.feature_dim = hdm.feature_dim
        self.blocks = hdm.subsets

    def forward(self, patches: Tensor, global_features: Tensor, *, present: Tensor | None = None) -> Tensor:
        """Feature `(B, E * D)` of patches `(B, M, N, D)` and globals `(B, M, D)`."""
        subsets: Tensor = self.hdm(global_features, patches, present=present)  # (B, E, D)
        subset_present = None if present is None else self.hdm.subset_present(present)  # (B, E)
        if self.atmoe is None:
            if self.norm is not None:
                subsets = mask_absent(self.norm(subsets.flatten(1)).view_as(subsets), subset_present)
            return subsets.flatten(1)
        mixed: Tensor = self.atmoe(subsets, subset_present=subset_present)
        return mixed


class ReIDModel(nn.Module):
    """Backbone -> PIFE -> head -> classifiers.

    Args:
        backbone: gives CLS and patch tokens of all modalities.
        pife: makes the global features; None takes the CLS tokens.
        head: `SDTPS`, `HDMHead` or None.
        guide: what SDTPS takes the cosines with: `reduced` (the globals after PIFE), `cls` or `mean_patch`
            (raw tokens, which share the patches' space).
        classifiers: by feature name (`global`, `head`, or `rgb`, `nir`, `tir`), used in training only.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        pife: PIFE | None,
        head: SDTPS | HDMHead | None,
        classifiers: dict[str, BNNeckClassifier],
        guide: GuideName = "reduced",
    ) -> None:
        super().__init__()
        if isinstance(head, SDTPS) and head.num_patches != backbone.num_patches:
            raise InputError(f"SDTPS is for {head.num_patches} patches, the backbone gives {backbone.num_patches}")
        if guide not in get_args(GuideName):
            raise InputError(f"guide is {guide!r}; allowed are {', '.join(get_args(GuideName))}")
        self.backbone, self.pife, self.head, self.guide = backbone, pife, head, guide
        self.classifiers = nn.ModuleDict(classifiers)
        self.centre: FeatureCentre | None = None  # subtracted in evaluation

    def forward(
        self, images: Tensor, present: Tensor | None = None, camera: Tensor | None = None, *, classify: bool = True
    ) -> ReIDOutput:
        """Features of a batch of triplets; in training also the logits.

        Args:
            images: `(B, M, 3, H, W)`, normalised; the content of absent modalities is ignored.
            present: `(B, M)` bool, at least one true per item; None: all present.
            camera: `(B,)` int64 camera index, -1 unknown; None: all unknown.
            classify: compute the logits in training. False leaves them to `classify`, where the features of several
                processes are brought together first.

        Raises:
            InputError: for wrong shapes, or an item without any modality.
        """
        check_inputs(images, present, camera)
        own = next(self.parameters())
        mixed = images.dtype != own.dtype and not torch.is_autocast_enabled(images.device.type)
        if images.device != own.device or mixed:
            raise InputError(
                f"images are {images.dtype} on {images.device}, the model {own.dtype} on {own.device}; move one "
                "with .to(...)"
            )
        return self.read_out(self.backbone(images, present=present, camera=camera), present, classify=classify)

    def read_out(self, tokens: BackboneOutput, present: Tensor | None, *, classify: bool = True) -> ReIDOutput:
        """What follows the backbone: the features of its tokens, zeros where a modality is absent `(B, M)`."""
        # Sets of tokens take the fused one in; SDTPS chooses among patches, each of which has a place in the grid.
        everything = tokens.patches if tokens.fused is None else torch.cat([tokens.patches, tokens.fused], dim=2)
        if self.pife is not None:
            global_features = self.pife(tokens.cls, everything, present=present)  # (B, M, D)
        else:
            global_features = mask_absent(tokens.cls, present)
        features = {"global": global_features.flatten(1)}  # (B, M * D)
        features |= dict(zip(MODALITIES, global_features.unbind(1), strict=True))
        selection: dict[str, Selection] = dict(tokens.selection)
        if isinstance(self.head, SDTPS):
            guides = self._guides(tokens, global_features)
            inside = list(tokens.selection.values())[-1] if tokens.selection else None
            slimmed = self.head(
                tokens.patches,
                guides,
                global_features=global_features,
                present=present,
                places=None if inside is None else inside.indices,
                cut_scores=None if inside is None else kept_scores(inside),
            )
            features["head"], selection["sdtps"] = slimmed.feature, slimmed.selection
            if inside is not None:
                selection["sdtps"] = in_original_grid(slimmed.selection, inside)
        elif self.head is not None:
            features["head"] = self.head(everything, global_features, present=present)
        logits = self.classify(features, present) if self.training and classify else {}
        used = present if present is not None else tokens.cls.new_ones(tokens.cls.shape[:2]).bool()
        blocks = {"global": MODALITY_BLOCKS} | ({} if self.head is None else {"head": self.head.blocks})
        if self.centre is not None and not self.training:
            features = self.centre(features, blocks=blocks, present=used)
        return ReIDOutput(features, used, logits, selection, auxiliary=tokens.auxiliary, blocks=blocks)

    def _guides(self, tokens: BackboneOutput, global_features: Tensor) -> Tensor:
        if self.guide == "cls":
            return tokens.cls
        return tokens.patches.mean(dim=2) if self.guide == "mean_patch" else global_features

    def classify(self, features: Mapping[str, Tensor], present: Tensor | None) -> dict[str, Tensor]:
        """Logits `(B, C)` of each feature `(B, F)` that has a classifier; present `(B, M)` bool, None: all."""
        return {name: self._classify(name, features[name], present) for name in self.classifiers}

    def _classify(self, name: str, feature: Tensor, present: Tensor | None) -> Tensor:
        """Logits `(B, C)`; a modality's own classifier uses only the items that have the modality."""
        own = present[:, MODALITIES.index(name)] if present is not None and name in MODALITIES else None
        logits: Tensor = self.classifiers[name](feature, present=own)
        return logits

    def feature_widths(self) -> dict[str, int]:
        """The width of `global` and, where there is a head, of `head`."""
        widths = {"global": NUM_MODALITIES * self.backbone.dim}
        return widths if self.head is None else {**widths, "head": self.head.feature_dim}

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainable parameters by the role that sets their learning rate, each with its full name."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {
            "backbone": [],
            "camera": [],
            "classifier": [],
            "other": [],
        }
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[_role(name)].append((name, parameter))
        return groups


def _role(name: str) -> str:
    if name.startswith("backbone.camera_embedding."):
        return "camera"
    if name.startswith("backbone.vit."):  # the rest of the backbone starts fresh
        return "backbone"
    return "classifier" if name.startswith("classifiers.") and ".classifier." in name else "other"


def check_inputs(images: Tensor, present: Tensor | None, camera: Tensor | None) -> None:
    """Types and shapes of the model's inputs.

    Raises:
        InputError: what was given and what is allowed.
    """
    for name, value in (("images", images), ("present", present), ("camera", camera)):
        if not isinstance(value, Tensor) and (value is not None or name == "images"):
            raise InputError(f"{name} is a {type(value).__name__}; it must be a tensor")
    places = {name: value.device for name, value in (("images", images), ("present", present), ("camera", camera))
              if value is not None}  # fmt: skip
    if len(set(places.values())) > 1:
        raise InputError(f"the inputs lie on different devices ({places}); move them to one")
    if images.dim() != 5 or images.shape[1] != len(MODALITIES) or images.shape[2] != 3:
        raise InputError(
            f"images have shape {tuple(images.shape)}; they must be (B, {len(MODALITIES)}, 3, H, W): where a "
            "modality has no image give zeros, and say so in present"
        )
    if not images.is_floating_point():
        raise InputError(f"images are of type {images.dtype}; they must be normalised floats (data/transforms.py)")
    if present is not None:
        if present.dtype != torch.bool:
            raise InputError(f"present is of type {present.dtype}; it must be torch.bool, true where there is an image")
        if tuple(present.shape) != tuple(images.shape[:2]):
            raise InputError(f"present has shape {tuple(present.shape)}; it must be {tuple(images.shape[:2])}")
        if not is_exporting() and not bool(present.any(dim=1).all()):
            rows = (~present.any(dim=1)).nonzero()[:, 0].tolist()
            raise InputError(f"items {rows[:5]} have no modality present: every item needs at least one")
    if camera is not None and (tuple(camera.shape) != tuple(images.shape[:1]) or camera.dtype != torch.int64):
        raise InputError(
            f"camera is {camera.dtype} of shape {tuple(camera.shape)}; it must be int64 of shape ({images.shape[0]},)"
        )
