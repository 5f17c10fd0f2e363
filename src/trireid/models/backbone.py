"""The shared ViT: three modalities as one batch of 3B images through a timm vision transformer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.models import guidance, slimming
from trireid.models.camera import CameraEmbedding
from trireid.models.compiling import is_exporting, share_drop_path
from trireid.models.modality import mask_absent, standardised
from trireid.models.predictor import PatchPredictor
from trireid.models.recomputing import run_again
from trireid.models.rotary import Rotations, switch_off_augmentation
from trireid.models.slimming import RowTokens, SlimmingStage
from trireid.models.tokens import embed_tokens, read_tokens
from trireid.models.untrusted import one_line
from trireid.models.vit_parts import ALIASES, FAMILIES, MODULES, ViT, check_vit, near_names
from trireid.names import SieTokens
from trireid.types import Selection

TINY = MappingProxyType({"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 4})


class BackboneOutput(NamedTuple):
    """Tokens after the last block, normalised (and projected, for CLIP).

    Attributes:
        cls: `(B, M, D)`, the CLS token or what stands for it, see `trireid.models.tokens.read_tokens`; zeros for absent
            modalities.
        patches: `(B, M, N, D)`, after slimming the kept ones in grid order; zeros for absent modalities.
        fused: `(B, M, 1, D)`, the token of all patches dropped inside the ViT; None without slimming.
        selection: what was kept inside the ViT, by stage (`block4`); empty without slimming.
        auxiliary: scalar losses of the learned stages in training, by name; empty else.
    """

    cls: Tensor
    patches: Tensor
    fused: Tensor | None
    selection: dict[str, Selection]
    auxiliary: dict[str, Tensor]


class Backbone(nn.Module):
    """A timm ViT applied to `(B, M, 3, H, W)`.

    Args:
        vit: timm vision transformer with learned or rotary positions, whose random shifts in training are switched off.
            A linear `head` is kept as projection of all tokens (CLIP: 768 -> 512).
        num_cameras: size of the camera embedding; 0 has none.
        sie_coefficient: scale of the camera embedding.
        sie_tokens: what it is added to: `cls`, the CLS token alone (upstream's CLIP tower), or `all` tokens (TransReID,
            and upstream's ImageNet tower).
        stages: cuts inside the ViT, see `trireid.models.slimming`.
        standardise: bring every image to mean 0 and variance 1 first, see `modality.standardised`.

    Raises:
        InputError: for a ViT that lacks what is used of it (see `vit_parts.check_vit`), cuts that do not fit it, or a
            camera embedding for a CLS token that is not there.
    """

    def __init__(
        self,
        vit: ViT,
        *,
        num_cameras: int = 0,
        sie_coefficient: float = 1.0,
        sie_tokens: SieTokens = "cls",
        stages: tuple[SlimmingStage, ...] = (),
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.standardise = standardise
        check_vit(vit, reads_attention=any(stage.reads_attention for stage in stages))
        switch_off_augmentation(vit)
        self.vit = vit
        if isinstance(vit, VisionTransformer) and isinstance(vit.head, nn.Linear) and vit.head.bias is not None:
            vit.head.bias.requires_grad_(False)  # CLIP's projection has none; that of timm's layer is 0 and stays so
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        self.image_size: tuple[int, int] = tuple(vit.patch_embed.img_size)
        num_patches = self.grid[0] * self.grid[1]
        counts = slimming.check_stages(stages, num_blocks=len(vit.blocks), num_patches=num_patches)
        self.stages = {stage.after_block: stage for stage in stages}
        learned = {f"block{stage.after_block}": PatchPredictor(vit.embed_dim) for stage in stages if stage.is_learned}
        self.predictors = nn.ModuleDict(learned)
        self.num_patches: int = counts[-1] if counts else num_patches  # that leave the backbone
        self.dim: int = vit.head.out_features if isinstance(vit.head, nn.Linear) else vit.embed_dim
        self.sie_coefficient, self.sie_tokens = sie_coefficient, sie_tokens
        # Learned stages foresee the attention of the last quarter of the blocks, as far as it follows the last cut.
        depth, last_cut = len(vit.blocks), max((stage.after_block for stage in stages), default=0)
        self.first_foreseen = max(depth - max(1, depth // 4), last_cut) + 1
        self.is_compiled = False
        self._learned_scores, self._cut = guidance.learned_scores, slimming.cut  # in evaluation, where compiled
        self.recompute_blocks = False  # in the backward pass, which saves memory and takes time
        self.cuts_in_training = True  # False: train dense, while learned stages learn from all patches
        wanted = num_cameras > 0 and sie_coefficient > 0
        if wanted and sie_tokens == "cls" and vit.cls_token is None:
            raise InputError(
                "model.sie_tokens is cls, and the backbone has no class token to add the camera embedding to: set "
                "model.sie_tokens to all, or model.sie_coefficient to 0 for none"
            )
        self.camera_embedding = CameraEmbedding(num_cameras, vit.embed_dim) if wanted else None

    def forward(
        self,
        images: Tensor,
        *,
        present: Tensor | None = None,
        camera: Tensor | None = None,
        num_modalities: int | None = None,
    ) -> BackboneOutput:
        """Run all present images through the ViT as one batch.

        Args:
            images: `(B, M, 3, H, W)`, normalised.
            present: `(B, M)` bool; absent modalities are not computed. None: all present.
            camera: `(B,)` int64 camera indices, -1 unknown; None: all unknown.
            num_modalities: of the whole model, where M counts fewer, all of them present; None: M.

        Raises:
            InputError: if the images have another size than the one the position table was made for.
        """
        self._check_size(images)
        batch, modalities = images.shape[:2]
        shown = images.new_ones(batch, modalities, dtype=torch.bool) if present is None else present
        rows = None
        if present is not None and is_exporting():  # a graph skips no image: it computes all and drops the absent ones
            images = mask_absent(images, present)
        elif present is not None:
            rows = present.flatten().nonzero()[:, 0]  # (R,) of B * M
        flat = images.flatten(0, 1)  # (B * M, 3, H, W)
        shift = None
        if self.camera_embedding is not None:
            shift = self.camera_embedding(camera, batch).repeat_interleave(modalities, dim=0)  # (B * M, D)
        if rows is not None:
            flat = flat[rows]
            shift = shift[rows] if shift is not None else None
        if self.standardise:
            flat = standardised(flat)
        self._mark_rows(flat, shift)
        embedded = self.embed(flat, shift)
        if not self.training and torch.is_autocast_enabled(embedded.device.type):
            embedded = embedded.to(torch.get_autocast_dtype(embedded.device.type))  # halves the traffic of the residual
        tokens, chosen, auxiliary = self._blocks(
            embedded, present=shown, rows=rows, num_modalities=num_modalities or modalities
        )
        spread = partial(self._spread, present=shown, rows=rows, is_complete=present is None)
        sequence = spread(read_tokens(self.vit, tokens.sequence))  # (B, M, 1 + N (+ 1), D)
        selection = {name: each.map(spread) for name, each in chosen.items()}
        end = 1 + tokens.patches.shape[1]
        fused = sequence[:, :, end:] if tokens.fused is not None else None
        cls, patches = sequence[:, :, 0], sequence[:, :, 1:end]
        return BackboneOutput(cls=cls, patches=patches, fused=fused, selection=selection, auxiliary=auxiliary)

    def _check_size(self, images: Tensor) -> None:
        if tuple(images.shape[-2:]) != self.image_size:
            raise InputError(
                f"images are {images.shape[-2]} x {images.shape[-1]} pixels, the model was built for "
                f"{self.image_size[0]} x {self.image_size[1]}: resize them, or build the model with that image_size"
            )

    def compile_blocks(self, *, cuts: bool = False) -> None:
        """Compile the blocks of the ViT, one form for all of them, once a token count for any number of rows.

        Args:
            cuts: what makes the tokens, and in evaluation what a cut does, too: more pieces to compile, a little time
                saved in every batch. Worthwhile for a model that sees very many.
        """
        if not self.is_compiled:
            share_drop_path(self.vit.blocks)
            for block in self.vit.blocks:
                block.compile(dynamic=False)
            for predictor in self.predictors.values():
                predictor.compile(dynamic=True)
        self.is_compiled = True
        if cuts:
            self.embed = torch.compile(type(self).embed.__get__(self), dynamic=False)  # type: ignore[method-assign]
            self._learned_scores = torch.compile(guidance.learned_scores, dynamic=False)
            self._cut = torch.compile(slimming.cut, dynamic=False)

    def uncompile(self) -> None:
        """Run everything plain again, after `compile_blocks`."""
        if self.is_compiled:
            self.__dict__.pop("embed", None)  # the method is seen again
            for module in (*self.vit.blocks, *self.predictors.values()):
                module._compiled_call_impl = None
        self.is_compiled = False
        self._learned_scores, self._cut = guidance.learned_scores, slimming.cut

    def _mark_rows(self, *values: Tensor | None) -> None:
        for value in values if self.is_compiled else ():  # they come in every number: last batches, absent modalities
            if value is not None:
                torch._dynamo.maybe_mark_dynamic(value, 0)

    def embed(self, images: Tensor, shift: Tensor | None = None) -> Tensor:
        """Tokens `(R, P + N, D)` before the first block, of images `(R, 3, H, W)` and their cameras' `(R, D)`."""
        added = None
        if shift is not None:
            added = self.sie_coefficient * shift.unsqueeze(1).to(self.vit.patch_embed.proj.weight.dtype)  # (R, 1, D)
        return embed_tokens(self.vit, images, added=added, sie_tokens=self.sie_tokens)

    def _blocks(
        self, sequence: Tensor, *, present: Tensor, rows: Tensor | None, num_modalities: int
    ) -> tuple[RowTokens, dict[str, Selection], dict[str, Tensor]]:
        num_prefix = self.vit.num_prefix_tokens
        positions = torch.arange(sequence.shape[1] - num_prefix, device=sequence.device).expand(sequence.shape[0], -1)
        tokens = RowTokens(sequence, positions, num_prefix=num_prefix, has_cls=self.vit.cls_token is not None)
        rotations = Rotations(self.vit, self.grid)
        selection: dict[str, Selection] = {}
        learning: dict[str, tuple[Tensor, Tensor]] = {}  # scores and places of the learned stages
        foreseen: list[Tensor] = []  # attention of late blocks
        for number, block in enumerate(self.vit.blocks, start=1):
            before, rope = tokens.sequence, rotations.of(tokens, block=number - 1)
            self._mark_rows(before, rope if tokens.num_fused else None)
            options = {"rope": rope, "attn_mask": tokens.attention_bias}
            options = {name: value for name, value in options.items() if value is not None}
            again = self.recompute_blocks and self.training and torch.is_grad_enabled()
            run = partial(run_again, block) if again else block
            tokens = tokens._replace(sequence=run(before, **options))
            if learning and number >= self.first_foreseen:
                foreseen.append(guidance.attention_of(tokens, block=block, before=before, rope=rope))
            stage, name = self.stages.get(number), f"block{number}"
            if stage is None or stage.guidance == "none":
                continue
            scores = self._scores(
                tokens, stage, name, block=block, before=before, present=present, rows=rows,
                num_modalities=num_modalities, rope=rope,
            )  # fmt: skip
            if stage.is_learned and self.training:
                learning[f"{name}/foresight"] = scores, tokens.positions
            if self.cuts_in_training or not self.training:
                self._mark_rows(tokens.sequence, tokens.positions, scores, tokens.mass)
                cut = slimming.cut if self.training else self._cut
                keys = guidance.keys_of(tokens, block=block, before=before) if stage.guidance == "matching" else None
                tokens, selection[name] = cut(tokens, stage, scores=scores, grid=self.grid, keys=keys)
        auxiliary = {
            name: guidance.foresight_loss(scores, places, torch.stack(foreseen).mean(dim=0), tokens.positions)
            for name, (scores, places) in learning.items()
        }
        return tokens, selection, auxiliary

    def _scores(
        self,
        tokens: RowTokens,
        stage: SlimmingStage,
        name: str,
        *,
        block: nn.Module,
        before: Tensor,
        present: Tensor,
        rows: Tensor | None,
        num_modalities: int,
        rope: Tensor | None,
    ) -> Tensor:
        """`(R, N)` for a cut; arguments as those of `guidance.stage_scores`."""
        places = self.grid[0] * self.grid[1]
        if not stage.is_learned:
            return guidance.stage_scores(
                stage, tokens, block=block, before=before, present=present, rows=rows, num_places=places,
                num_modalities=num_modalities, rope=rope,
            )  # fmt: skip
        self._mark_rows(tokens.sequence, tokens.positions, present, rows)
        score = guidance.learned_scores if self.training else self._learned_scores
        places = places if stage.guidance == "consensus" else 0
        return score(self.predictors[name], tokens, present=present, rows=rows, consensus_places=places)

    @staticmethod
    def _spread(values: Tensor, present: Tensor, rows: Tensor | None, is_complete: bool) -> Tensor:
        """Rows `(R, ...)` back to `(B, M, ...)`, zeros where a modality is absent."""
        if rows is not None:
            empty = values.new_zeros(present.numel(), *values.shape[1:])
            values = empty.index_copy(0, rows, values)
        spread: Tensor = values.unflatten(0, tuple(present.shape))
        if rows is None and not is_complete:
            spread = spread.masked_fill(~present.view(*present.shape, *([1] * (spread.dim() - 2))), 0)
        return spread


def create_vit(
    name: str,
    *,
    image_size: tuple[int, int],
    patch_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    projection: int | None = None,
    drop_path: float = 0.0,
) -> ViT:
    """A timm ViT of this name for this image size, with fresh weights (models/weights.py loads others).

    Args:
        name: `tiny`, or one of `vit_parts.backbone_names`; a timm name may carry the tag of its weights.
        image_size: (height, width) in pixels, multiples of the patch size.
        patch_size, width, depth, num_heads: replace what the name says; None keeps it.
        projection: width of the map that ends CLIP's tower; None keeps what the name says.
        drop_path: stochastic depth rate in [0, 1).

    Raises:
        InputError: for an unknown name, a model that is no plain ViT, sizes that do not divide, or a projection of a
            tower that has none.
    """
    sizes = {"patch_size": patch_size, "embed_dim": width, "depth": depth, "num_heads": num_heads}
    options: dict[str, Any] = {key: value for key, value in sizes.items() if value is not None}
    options |= {"img_size": image_size, "drop_path_rate": drop_path}
    projects = name != "tiny" and projects_features(timm_model_name(name))
    if projection is not None and not projects:
        raise InputError(
            f"projection is {projection}, but backbone {name!r} ends without one: only CLIP's towers have it"
        )
    if name == "tiny":
        options = {"num_classes": 0, "global_pool": "token", **TINY, **options}
        vit: nn.Module = _construct(VisionTransformer, options)
    else:
        timm_name = timm_model_name(name)
        # Only CLIP's head is a projection of features; every other head would be an ImageNet classifier.
        if not projects:
            options["num_classes"] = 0
        elif projection is not None:
            options["num_classes"] = projection
        if timm.models.is_model_in_modules(timm_name.split(".")[0], ("eva",)):
            options["dynamic_img_size"] = False  # one image size: rotary positions are computed once
        vit = _construct(partial(timm.create_model, timm_name, pretrained=False), options)
    if not isinstance(vit, ViT):
        raise InputError(f"backbone {name!r} is a {type(vit).__name__}; only {FAMILIES} of timm are supported")
    check_image_size(image_size, patch_size=tuple(vit.patch_embed.patch_size))
    return vit


def timm_model_name(name: str) -> str:
    """The full timm name behind an alias or a timm name.

    Raises:
        InputError: if it is no vision transformer of timm that can be used; the nearest names are given.
    """
    timm_name = ALIASES.get(name, name)
    architecture, _, tag = timm_name.partition(".")
    if not timm.models.is_model_in_modules(architecture, MODULES):
        hint = ", ".join(near_names(architecture))
        raise InputError(
            f"backbone {name!r} is neither tiny, nor one of {', '.join(ALIASES)}, nor a ViT of timm of the families "
            f"{FAMILIES}{hint and f'; near: {hint}'}; trireid.backbone_names() in Python lists all"
        )
    tags = [each.partition(".")[2] for each in timm.list_models(f"{architecture}.*", include_tags=True)]
    if tag and tag not in tags:
        raise InputError(
            f"backbone {name!r}: timm knows no weights of {architecture} by the tag {tag!r}; its tags are "
            f"{', '.join(filter(None, tags)) or 'none'}"
        )
    return timm_name


def projects_features(timm_name: str) -> bool:
    """Whether the linear head of this timm model projects tokens (CLIP) instead of classifying images."""
    config = timm.get_pretrained_cfg(timm_name)  # resolves the default tag of a bare name as well
    tag = (config.tag if config is not None else "") or ""
    return "_clip_" in timm_name and "_ft_" not in tag  # fine-tuned towers end in an ImageNet classifier


def check_image_size(image_size: tuple[int, int], *, patch_size: tuple[int, int]) -> None:
    """Image height and width must be multiples of the patch size, so that no border is cut off silently.

    Raises:
        InputError: naming both sizes.
    """
    if any(side % patch for side, patch in zip(image_size, patch_size, strict=True)):
        raise InputError(
            f"image size {image_size[0]} x {image_size[1]} is no multiple of the patch size "
            f"{patch_size[0]} x {patch_size[1]}: set data.image_size to multiples of it"
        )


def _construct(factory: Callable[..., nn.Module], options: dict[str, Any]) -> nn.Module:
    try:
        return factory(**options)
    except (AssertionError, TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise InputError(f"the backbone cannot be built with {options}: {one_line(error)}") from error
