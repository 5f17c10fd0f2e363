"""A model as a function of tensors alone, in the form that exporters trace: a dictionary comes out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models.backbone import BackboneOutput
from trireid.models.reid import ReIDModel
from trireid.types import MODALITIES, NUM_MODALITIES, Selection

FEATURES: tuple[str, ...] = ("global", "head")
PATCHES = "patches/"
"""Before the name of a selection, in the names of outputs."""


class ExportedModel(nn.Module):
    """Features of images by name, and the indices of the patches that every selection kept.

    Args:
        model: in evaluation mode.
        modalities: indices of the modalities that images are given of; None: all three, with `present`.
        selections: also give `patches/NAME` `(B, M, K)` int64 for each selection.
        half: the ViT in half precision (a copy of it); scores, head and features stay float32.

    Raises:
        InputError: a cut needs another modality to guide it, and there is only one.
    """

    def __init__(
        self,
        model: ReIDModel,
        *,
        modalities: tuple[int, ...] | None = None,
        selections: bool = False,
        half: bool = False,
    ) -> None:
        super().__init__()
        if modalities is not None and len(modalities) < 2 and needs_two(model):
            raise InputError(
                "the model has a cut of guidance cross, which needs two modalities, and one is given: name two or more"
            )
        # The same parts without the classifiers, which only training uses.
        backbone = copy.deepcopy(model.backbone) if half else model.backbone
        if half:
            backbone.vit.half()
        self.model = ReIDModel(backbone, pife=model.pife, head=model.head, classifiers={}, guide=model.guide)
        self.model.centre = model.centre
        self.modalities, self.selections, self.half_vit = modalities, selections, half
        self.train(model.training)

    def forward(self, images: Tensor, present: Tensor | None = None, camera: Tensor | None = None) -> dict[str, Tensor]:
        """Features `global`, `head` (where there is one) and `joint`, `(B, ...)` float32.

        Args:
            images: `(B, m, 3, H, W)` float32, normalised, of the modalities given at construction.
            present: `(B, M)` bool, for a model of all three; what absent images hold has no effect.
            camera: `(B,)` int64, -1 unknown, for a model with camera embedding.
        """
        images = images.half() if self.half_vit else images
        tokens = self.model.backbone(images, present=present, camera=camera, num_modalities=NUM_MODALITIES)
        if self.half_vit:
            fused = None if tokens.fused is None else tokens.fused.float()
            tokens = tokens._replace(cls=tokens.cls.float(), patches=tokens.patches.float(), fused=fused)
        shown = present
        if self.modalities is not None:
            tokens, shown = _spread(tokens, self.modalities)
        output = self.model.read_out(tokens, shown)
        named = {name: output.features[name] for name in FEATURES if name in output.features}
        named["joint"] = output.embedding
        outputs = dict(named)
        if self.selections:
            outputs |= {f"{PATCHES}{name}": chosen.indices for name, chosen in output.selection.items()}
        return outputs


def needs_two(model: ReIDModel) -> bool:
    """Whether every item must have two modalities: a cut is guided by the others alone."""
    return any(stage.guidance == "cross" for stage in model.backbone.stages.values())


def _spread(tokens: BackboneOutput, modalities: tuple[int, ...]) -> tuple[BackboneOutput, Tensor | None]:
    """Tokens of some modalities among those of all, zeros elsewhere, and `present` `(B, M)`; None where all are."""
    if len(modalities) == NUM_MODALITIES:
        return tokens, None

    def among_all(values: Tensor) -> Tensor:
        places = [modalities.index(each) if each in modalities else None for each in range(len(MODALITIES))]
        absent = torch.zeros_like(values[:, 0])
        return torch.stack([absent if place is None else values[:, place] for place in places], dim=1)

    def all_selected(chosen: Selection) -> Selection:
        return chosen.map(among_all)

    shown = among_all(torch.ones_like(tokens.cls[..., 0], dtype=torch.bool))
    spread = tokens._replace(
        cls=among_all(tokens.cls),
        patches=among_all(tokens.patches),
        fused=None if tokens.fused is None else among_all(tokens.fused),
        selection={name: all_selected(chosen) for name, chosen in tokens.selection.items()},
    )
    return spread, shown
