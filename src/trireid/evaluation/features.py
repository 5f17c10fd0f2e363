"""Features of a whole set: one forward per batch gives every pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from trireid.errors import InputError
from trireid.evaluation.missing import take_shown, withhold_batch
from trireid.names import MissingAs
from trireid.types import NUM_MODALITIES, Batch, Blocks, ReIDOutput, join_blocks

RANKED_FEATURES: tuple[str, ...] = ("global", "head", "joint")
"""Patterns 1, 2 and 3, the features that an evaluation ranks ("head" only where the model has one)."""

JOINED_FEATURES: tuple[str, ...] = ("global", "head")
"""The features that pattern 3 concatenates."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of every item of a set, in the order of its records.

    Attributes:
        features: by name, `(n, d)` float32 on the CPU, un-normalised: `"global"`, `"head"` where there is one,
            `"joint"` (pattern 3), and each modality's own.
        present: `(n, M)` bool, which modalities the model received.
        item: `(n,)` int64, position of each item in its set; ascending.
        blocks: by the name of a feature, the modalities of each of its blocks; a feature without an entry is compared
            as a whole.
    """

    features: dict[str, Tensor]
    present: Tensor
    item: Tensor
    blocks: dict[str, Blocks] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.item.shape[0]

    @classmethod
    def of_nothing(cls) -> FeatureSet:
        """A set of no items, which has no features either."""
        return cls({}, torch.zeros(0, NUM_MODALITIES, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))


class RunModel(Protocol):
    """What `run_model` does, by whatever way."""

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        present: Tensor,
        device: torch.device,
        dtype: torch.dtype | None = None,
        transform: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> ReIDOutput:
        """The output of the model for one batch."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and give every module its own mode back at the end."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


def extract_features(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    transform: Callable[[Tensor, Tensor], Tensor] | None = None,
    withheld: Sequence[str] = (),
    missing_as: MissingAs = "absent",
    names: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
    run: RunModel | None = None,
) -> FeatureSet:
    """Features of all items of a loader; the model is called once per batch and keeps its training mode.

    Items that have only withheld modalities are left out.

    Args:
        model: called as `model(images, present=..., camera=...)`, returns a `ReIDOutput`; lies on `device`.
        loader: batches that hold each item once.
        device: where the model runs.
        dtype: autocast to this type; None computes in the model's own.
        transform: makes images of (pixels, present) of a batch, on the device; None: the batches hold images.
        withheld: modalities taken away, see `missing.withhold`.
        missing_as: with `absent` the model receives them as not present; with `zeros` it sees a normalised image of
            zeros, as upstream does. What an item lacks in the data set stays absent.
        names: name of each item by its number, for messages.
        progress: called after each batch with the number of its items.
        run: instead of `run_model`, such as a `RecordedRun`; None: `run_model`.

    Returns:
        One row for each item that keeps a modality; an empty set without features if no item does.

    Raises:
        InputError: the loader is empty, gives an item twice, or a feature is not finite.
    """
    device = torch.device(device)
    parts: list[FeatureSet] = []
    num_given, run = 0, run or run_model
    with evaluation_mode(model), torch.inference_mode():
        for given in loader:
            batch = take_shown(given, withheld) if withheld else given
            if len(batch.item):
                shown = withhold_batch(batch, withheld)
                told = batch.present if missing_as == "zeros" else shown.present
                output = run(model, shown, present=told, device=device, dtype=dtype, transform=transform)
                part = FeatureSet(_to_cpu(output), told, shown.item, joint_blocks(output.blocks, output.features))
                _check_finite(part, names)
                parts.append(part)
            num_given += len(given.item)
            if progress is not None:
                progress(len(given.item))
    if not num_given:
        raise InputError("the loader gave no batch; features need at least one item, check the split")
    return join_features(parts) if parts else FeatureSet.of_nothing()


def run_model(
    model: nn.Module,
    batch: Batch,
    *,
    present: Tensor,
    device: torch.device,
    dtype: torch.dtype | None = None,
    transform: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> ReIDOutput:
    """The output of a model for one batch; the model is in evaluation mode and gradients are off.

    Args:
        model: called as `model(images, present=..., camera=...)`; lies on `device`.
        batch: on any device.
        present: `(B, M)` bool on the CPU, what the model is told of presence.
        device, dtype, transform: as in `extract_features`.
    """
    # Known before the copy: a model that must look for absent modalities waits for the device.
    shown = None if bool(present.all()) else present.to(device, non_blocking=True)
    moved = batch.to(device, non_blocking=True)
    images = moved.images if transform is None else transform(moved.images, moved.present)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        output: ReIDOutput = model(images, present=shown, camera=moved.camera)
    return output


def _to_cpu(output: ReIDOutput) -> dict[str, Tensor]:
    """All features of an output and pattern 3, float32 on the CPU."""
    features = output.features | {"joint": output.embedding}
    return {name: value.float().cpu() for name, value in features.items()}


def joint_blocks(blocks: Mapping[str, Blocks], features: Mapping[str, Tensor]) -> dict[str, Blocks]:
    """The blocks of all features, with those of `joint` where all its parts have blocks."""
    parts = [name for name in JOINED_FEATURES if name in features]
    if any(name not in blocks for name in parts):
        return dict(blocks)
    return {**blocks, "joint": join_blocks([(blocks[name], features[name].shape[1]) for name in parts])}


def join_features(parts: Sequence[FeatureSet]) -> FeatureSet:
    """One set out of its parts, by item number.

    Raises:
        InputError: an item is there twice.
    """
    item, order = torch.cat([part.item for part in parts]).sort(stable=True)
    repeated = item[1:][item[1:] == item[:-1]]
    if len(repeated):
        raise InputError(f"the loader gave item {int(repeated[0])} more than once; each item is allowed once")
    features = {name: torch.cat([part.features[name] for part in parts])[order] for name in parts[0].features}
    present = torch.cat([part.present for part in parts])[order]
    return FeatureSet(features, present, item, next((part.blocks for part in parts if part.blocks), {}))


def _check_finite(part: FeatureSet, names: Sequence[str] | None) -> None:
    """Raise InputError that names the first item with a feature that is not a number."""
    for name, feature in part.features.items():
        broken = (~feature.isfinite()).any(dim=1).nonzero()
        if len(broken):
            item = int(part.item[int(broken[0])])
            label = f"item {item}" + (f" ({names[item]})" if names is not None else "")
            raise InputError(
                f"the {name} feature of {label} is NaN or infinite; check its images and the model's weights, "
                f"or evaluate in fp32"
            )
