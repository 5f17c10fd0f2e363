"""The few types that all parts share. Modality is an axis, always in the order of `MODALITIES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import gcd

import torch
from torch import Tensor

from trireid.names import MODALITIES as MODALITIES
from trireid.names import UNKNOWN as UNKNOWN
from trireid.names import Exclusion as Exclusion

NUM_MODALITIES = len(MODALITIES)

EXCLUSION_FIELD: dict[Exclusion, str | None] = {
    "camera": "camera",
    "scene": "scene",
    "cross_camera": "camera",
    "none": None,
}
"""What a rule compares: the field of a record or of labels, None where it compares none."""


def modality_subsets(num_modalities: int = NUM_MODALITIES) -> tuple[tuple[int, ...], ...]:
    """All non-empty subsets of modality indices, by size, then in order: r, n, t, rn, rt, nt, rnt."""
    indices = range(num_modalities)
    return tuple(subset for size in range(1, num_modalities + 1) for subset in combinations(indices, size))


Blocks = tuple[tuple[int, ...], ...]
"""A feature as equally wide blocks side by side: for each block the indices of the modalities that it is made of."""

MODALITY_BLOCKS: Blocks = tuple((index,) for index in range(NUM_MODALITIES))
"""One block per modality."""


def filled_blocks(blocks: Blocks, present: Tensor) -> Tensor:
    """Which blocks of an item's feature are filled: those that at least one present modality contributes to.

    Args:
        blocks: K blocks.
        present: `(..., M)` bool.

    Returns:
        `(..., K)` bool.
    """
    parts = [torch.stack([present[..., modality] for modality in block]).any(dim=0) for block in blocks]
    return torch.stack(parts, dim=-1)


def join_blocks(parts: Sequence[tuple[Blocks, int]]) -> Blocks:
    """The blocks of features that are concatenated, all of one width.

    Where the blocks of the features differ in width, wider ones are divided, so that each feature counts in a
    comparison by its width.

    Args:
        parts: the blocks and the width of each feature; a width is a multiple of the number of its blocks.
    """
    widths = [width // len(blocks) for blocks, width in parts]
    common = gcd(*widths)
    divided = zip(parts, widths, strict=True)
    return tuple(block for (blocks, _), width in divided for block in blocks for _ in range(width // common))


@dataclass(frozen=True)
class Batch:
    """One batch of triplets as the loader gives it.

    Attributes:
        images: `(B, M, 3, H, W)` uint8 pixels as the loader gives them; float and normalised once they are prepared
            on the device (`data.augment`, `data.transforms.Normalise`). Zeros where a modality is absent.
        present: `(B, M)` bool, which modalities the item really has.
        label: `(B,)` int64 class index in training, `UNKNOWN` (-1) outside the training identities.
        camera: `(B,)` int64 index into the training cameras, `UNKNOWN` (-1) where not known.
        item: `(B,)` int64 position of each item in its data set.
        seed: `(B,)` int64 seed of each item's augmentation, which travels with it.
    """

    images: Tensor
    present: Tensor
    label: Tensor
    camera: Tensor
    item: Tensor
    seed: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        moved = {name: value.to(device, non_blocking=non_blocking) for name, value in vars(self).items()}
        return Batch(**moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by the data loader)."""
        pinned = {name: value if value.is_cuda else value.pin_memory() for name, value in vars(self).items()}
        return Batch(**pinned)


@dataclass(frozen=True)
class Selection:
    """Which patches of each image were kept. Indices always refer to the original patch grid.

    Nothing of an absent modality is kept: its mask is all false, its indices, scores and weights are all 0 (the shapes
    stay those of the others). `ReIDOutput.present` says which these are.

    Attributes:
        indices: `(B, M, K)` int64, kept patches in ascending (grid) order.
        scores: `(B, M, N)` float32, the noise-free scores that chose them; for a later stage, patches
            that were already dropped have score `-inf`.
        mask: `(B, M, N)` bool, true where kept.
        grid: patch grid (rows, columns), rows * columns == N.
        weights: `(B, M, A, K)` float32 weight of each kept patch (in the order of `indices`) in each aggregated slot,
            or None where nothing is aggregated.
    """

    indices: Tensor
    scores: Tensor
    mask: Tensor
    grid: tuple[int, int]
    weights: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Selection:
        """The same selection with each of its tensors changed by a function, such as one that moves or indexes it."""
        return Selection(
            indices=change(self.indices),
            scores=change(self.scores),
            mask=change(self.mask),
            grid=self.grid,
            weights=None if self.weights is None else change(self.weights),
        )


@dataclass(frozen=True)
class ReIDOutput:
    """What the model returns, the same type in training and evaluation.

    Attributes:
        features: by name, un-normalised, before BNNeck. Always `"global"` `(B, M*D)` (pattern 1) and each modality's
            own `"rgb"`, `"nir"`, `"tir"` `(B, D)`; `"head"` `(B, F)` (pattern 2) where there is a head.
        logits: by name, `(B, C)`; every key is also a key of `features`, and the pair trains together.
            Empty where the model has no classifiers or is in evaluation.
        selection: by stage name (`"block4"` inside the ViT, `"sdtps"` in the head); empty where nothing is selected.
        present: `(B, M)` bool, the modalities that were used.
        auxiliary: scalar losses that the model itself adds in training, by name; empty in evaluation.
        blocks: by feature name, what its blocks are made of, for `"global"` and `"head"`. A block without any of its
            modalities is 0.
    """

    features: dict[str, Tensor]
    present: Tensor
    logits: dict[str, Tensor] = field(default_factory=dict)
    selection: dict[str, Selection] = field(default_factory=dict)
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    blocks: dict[str, Blocks] = field(default_factory=dict)

    @property
    def embedding(self) -> Tensor:
        """Pattern 3: `(B, M*D + F)`, global and head features concatenated (global alone without a head)."""
        parts = [self.features[name] for name in ("global", "head") if name in self.features]
        return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class Labels:
    """Identity, camera and scene of each item of a query or gallery set. All `(Q,)` int64 on one device.

    Attributes:
        identity: the same number for the same object, in query and gallery.
        camera: `UNKNOWN` (-1) where not known; an unknown camera equals no camera.
        scene: as camera.
        item: number of the image triplet itself: an item never matches itself.

    Example:
        Three triplets of two objects, from two cameras, with no scenes:

        >>> import torch
        >>> labels = Labels(
        ...     identity=torch.tensor([0, 0, 1]),
        ...     camera=torch.tensor([0, 1, 1]),
        ...     scene=torch.full((3,), UNKNOWN),
        ...     item=torch.arange(3),
        ... )
        >>> len(labels)
        3
    """

    identity: Tensor
    camera: Tensor
    scene: Tensor
    item: Tensor

    def __len__(self) -> int:
        return self.identity.shape[0]


@dataclass(frozen=True)
class Protocol:
    """Which gallery items a query must not see: always the item itself, and more by the rule.

    Attributes:
        name: for messages and result files.
        exclude: `"camera"` and `"scene"` hide the items of its identity with the same camera or scene, so that other
            identities of that camera stay as distractors; `"cross_camera"` hides every item of its own camera, so
            that the ranking runs across cameras alone; `"none"` hides nothing more.

    Example:
        >>> Protocol("cross-camera").exclude
        'camera'
    """

    name: str
    exclude: Exclusion = "camera"
