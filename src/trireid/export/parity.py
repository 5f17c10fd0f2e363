"""Whether an exported file gives what the model gives: every feature, and every kept patch, for every presence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trireid.embedding.onnx_metadata import Precision
from trireid.errors import TrireidError
from trireid.export.graph import FEATURES, PATCHES
from trireid.export.runtimes import RUNTIMES, Arrays, Runner
from trireid.models.reid import ReIDModel
from trireid.train.progress import Bar
from trireid.types import MODALITIES, NUM_MODALITIES, ReIDOutput, modality_subsets

BATCHES = (1, 3, 8)
TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.1}
"""Largest relative error of a feature; and largest gap between scores that count as equal, in parts of their range."""
MIXED = "mixed"


@dataclass(frozen=True)
class ParityRow:
    """One presence at one batch size in one runtime.

    Attributes:
        runtime: `onnxruntime`, `openvino` or `torch`.
        presence: `rgb`, `rgb+tir`, ...; `mixed`: every item its own.
        batch: number of items.
        errors: by feature, the largest of `|found - expected| / |expected|` over the items without a near tie.
        near_ties: items in which patches with all but equal scores were exchanged, see `TOLERANCE`.
        other_patches: items in which other patches were kept without such a reason.
        leaks: blocks of absent modalities that are not exactly 0.
    """

    runtime: str
    presence: str
    batch: int
    errors: dict[str, float]
    near_ties: int = 0
    other_patches: int = 0
    leaks: int = 0

    def faults(self, tolerance: float) -> list[str]:
        """What is wrong, one phrase each."""
        where = f"{RUNTIMES[self.runtime]}, {self.presence}, batch {self.batch}"
        found = [
            f"{name} differs by {error:.1e} ({where})"
            for name, error in self.errors.items()
            if not error <= tolerance  # NaN is a fault
        ]
        found += [f"{self.other_patches} items keep other patches ({where})"] if self.other_patches else []
        return found + ([f"{self.leaks} blocks of absent modalities are not 0 ({where})"] if self.leaks else [])


@dataclass(frozen=True)
class Parity:
    """The whole check: its rows, the bound, and the images it was made with, in words."""

    rows: tuple[ParityRow, ...]
    tolerance: float
    images: str

    @property
    def faults(self) -> list[str]:
        """What is wrong, the phrases of all rows."""
        return [fault for row in self.rows for fault in row.faults(self.tolerance)]

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "passed": not self.faults,
            "tolerance": self.tolerance,
            "images": self.images,
            "rows": [asdict(row) for row in self.rows],
        }


class ParityError(TrireidError):
    """An exported file that does not give what the model gives; `parity` says where."""

    def __init__(self, parity: Parity) -> None:
        faults = parity.faults
        more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        super().__init__(
            f"the exported file is not kept: {faults[0]}{more}; allowed is {parity.tolerance:g} of a feature and the "
            "same patches. Use another --opset, or leave out --half, --int8 or --check"
        )
        self.parity = parity


@dataclass(frozen=True)
class Case:
    """Items of one presence: their inputs, and what the model gives for them."""

    presence: str
    images: Tensor
    present: Tensor
    camera: Tensor
    expected: ReIDOutput

    def inputs(self, batch: int, *, modalities: Sequence[int] | None, names: Sequence[str]) -> Arrays:
        """The first items as the file takes them; absent images are NaN, so that a leak shows."""
        images = self.images[:batch].masked_fill(~self.present[:batch, :, None, None, None], float("nan"))
        shown = images if modalities is None else images[:, list(modalities)]
        given = {"images": shown, "present": self.present[:batch], "camera": self.camera[:batch]}
        return {name: given[name].numpy() for name in names}


def cases(
    model: ReIDModel, images: Tensor, *, modalities: Sequence[int] | None, fewest: int, num_cameras: int
) -> Iterator[Case]:
    """Every presence that the file is for, and every item its own.

    Args:
        model: in evaluation mode, on the CPU, float32.
        images: `(B, M, 3, H, W)` of complete items.
        modalities: that the file is fixed to; None: any.
        fewest: modalities that an item needs.
        num_cameras: cameras of the model; 0: none.
    """
    count = len(images)
    camera = torch.arange(count) % (num_cameras + 1) - 1
    allowed = [each for each in modality_subsets() if len(each) >= fewest]
    subsets = [tuple(modalities)] if modalities is not None else allowed
    masks = {_name(subset): _mask(subset).expand(count, -1) for subset in subsets}
    if len(subsets) > 1:
        masks[MIXED] = torch.stack([_mask(subsets[place % len(subsets)]) for place in range(count)])
    for name, present in masks.items():
        with torch.no_grad():
            yield Case(name, images, present, camera, model(images, present, camera if num_cameras else None))


def check_parity(
    found_cases: Sequence[Case],
    runners: Mapping[str, Runner],
    *,
    names: Sequence[str],
    modalities: Sequence[int] | None,
    tolerance: float,
    images: str,
    bar: Bar | None = None,
) -> Parity:
    """Run a file in each runtime on each case at each batch size, and compare.

    Args:
        found_cases: see `cases`.
        runners: by name of the runtime.
        names: inputs of the file.
        modalities: that it is fixed to, or None.
        tolerance: see `TOLERANCE`.
        images: what the images are, in words.
        bar: advanced by one for each comparison.
    """
    rows = []
    for runtime, run in runners.items():
        for case in found_cases:
            for batch in BATCHES:
                found = run(case.inputs(batch, modalities=modalities, names=names))
                rows.append(compare(runtime, case, found, batch=batch, tolerance=tolerance))
                if bar is not None:
                    bar.advance(1)
    return Parity(tuple(rows), tolerance, images)


def compare(runtime: str, case: Case, found: Arrays, *, batch: int, tolerance: float) -> ParityRow:
    """Compare the outputs of a file for the first items of a case with those of the model."""
    output = case.expected
    tied = np.zeros(batch, dtype=bool)
    other = np.zeros(batch, dtype=bool)
    for name, chosen in output.selection.items():  # in the order of the cuts: a later one follows from an earlier
        kept = found[f"{PATCHES}{name}"]
        for item in np.flatnonzero(~tied & ~other):
            gap = _largest_gap(kept[item], chosen.indices[item].numpy(), chosen.scores[item].numpy())
            tied[item], other[item] = 0 < gap <= tolerance, gap > tolerance
    features = {name: output.features[name] for name in FEATURES if name in output.features}
    features["joint"] = output.embedding
    errors: dict[str, float] = {}
    leaks = 0
    for name, expected in features.items():
        values, wanted = found[name].astype(np.float64), expected[:batch].double().numpy()
        if values.shape != wanted.shape:
            errors[name] = float("nan")
            continue
        norms = np.linalg.norm(wanted, axis=1)
        error = np.linalg.norm(values - wanted, axis=1) / np.where(norms > 0, norms, 1.0)
        errors[name] = float(error[~tied].max(initial=0.0)) if np.isfinite(error).all() else float("nan")
        if name in output.blocks:
            leaks += _leaks(values, output.blocks[name], case.present[:batch].numpy())
    return ParityRow(runtime, case.presence, batch, errors, int(tied.sum()), int(other.sum()), leaks)


def _largest_gap(found: NDArray[Any], expected: NDArray[Any], scores: NDArray[Any]) -> float:
    """By how much of their range the scores of exchanged patches differ; 0: the same patches, in each modality.

    Args:
        found, expected: `(M, K)` indices; scores: `(M, N)`, those that the model chose by.
    """
    gap = 0.0
    for ours, theirs, values in zip(expected, found, scores, strict=True):
        left, entered = np.setdiff1d(ours, theirs), np.setdiff1d(theirs, ours)
        if not np.array_equal(ours, theirs) and (left.size == 0 or left.size != entered.size):
            return float("inf")
        if left.size:
            finite = values[np.isfinite(values)]
            spread = max(float(finite.max()) - float(finite.min()), 1e-30)
            gap = max(gap, float(np.abs(values[left].max() - values[entered].min())) / spread, 1e-30)
    return gap if np.isfinite(gap) else float("inf")


def _leaks(values: NDArray[Any], blocks: Sequence[Sequence[int]], present: NDArray[np.bool_]) -> int:
    """Blocks of items that should be 0 and are not."""
    parts = values.reshape(len(values), len(blocks), -1)
    filled = np.stack([present[:, list(block)].any(axis=1) for block in blocks], axis=1)  # (B, K)
    return int(((parts != 0).any(axis=2) & ~filled).sum())


def _mask(subset: Sequence[int]) -> Tensor:
    return torch.tensor([index in subset for index in range(NUM_MODALITIES)])


def _name(subset: Sequence[int]) -> str:
    return "+".join(MODALITIES[index] for index in subset)
