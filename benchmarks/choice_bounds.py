"""What choosing patches and spectra can bring on tno_scenes, without any training: upper bounds that see the labels,
rules that do not, and controls.

    python benchmarks/choice_bounds.py --root data/tno_scenes --weights FILE [--quick] (TNO; ten minutes on a CPU)

FILE holds vit_small_patch14_dinov2 (model.backbone.pretrained), of which the first eight blocks and the last norm are
used, as in the recipe. A slot is the mean of the patches of a cell; slots lie side by side. `centred` and `weighted`
are `model.sdtps.contrast`; `adaptive fusion` is `evaluate.adaptive_fusion`. Rules and powers were chosen on the
training split, with its second capture as it is and veiled by artificial smoke or night noise; the test split is there
to report. Prints Markdown, writes JSON. `--quick`: random weights, tiny images, few draws.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from landsat_yardsticks import RULES
from paired import Cell, difference
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import normalize

from trireid.cli.guard import guarded
from trireid.data.images import load_images
from trireid.data.labels import rank_labels
from trireid.data.readers import scan
from trireid.data.records import Record
from trireid.data.transforms import EvaluationTransform
from trireid.errors import InputError
from trireid.evaluation.fusion import counted_pairs, fused_distance
from trireid.evaluation.metrics import rank_metrics
from trireid.files import check_writable, write_json
from trireid.models.backbone import create_vit
from trireid.models.contrast import finish_slots, slot_values
from trireid.models.modality import standardised
from trireid.models.selection import select_top
from trireid.models.weights import load_backbone_weights
from trireid.names import ContrastName
from trireid.types import NUM_MODALITIES, Labels, Protocol

NAME, BLOCKS, ITEMS = "dinov2_vit_s14", 8, 32
SIZE, QUICK_SIZE, PATCH = 112, 56, 14
QUICK_IDENTITIES = 4
"""Of each scene, with `--quick`."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VEILS = {"smoke in visible and NIR": ("smoke", (0, 1)), "night in visible and NIR": ("night", (0, 1)),
         "smoke in thermal": ("smoke", (2,)), "night in thermal": ("night", (2,))}  # fmt: skip
GROUPS = ("scene", "identity")
CONTRASTS: dict[ContrastName, str] = {"none": "all patches", "centred": "centred", "weighted": "weighted"}
POWERS = (2, 4, 8)
DIFFERENCES = (("weighted", "all patches"), ("weighted", "centred"), ("centred", "all patches"),
               ("all patches, adaptive fusion 4", "all patches"), ("weighted, adaptive fusion 4", "weighted"),
               ("weighted, adaptive fusion 4", "all patches"))  # fmt: skip
"""Rows that are compared: the first less the second."""


@dataclass(frozen=True)
class Items:
    """Patches `(n, M, N, D)` of a square grid, with labels and the scene of each item."""

    patches: Tensor
    labels: Labels
    scene: list[str]


def veiled(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Images `(n, 1, H, W)` in [0, 1] behind smoke (little contrast, soft clouds) or with the noise of a night."""

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)

    def noise(cells: int) -> Tensor:
        drawn = torch.randn(len(images), 1, cells, cells, generator=generator)
        return functional.interpolate(drawn, size=images.shape[-2:], mode="bilinear")

    detail = images - images.mean(dim=(-2, -1), keepdim=True)
    if kind == "smoke":
        return (draw(0.3, 0.8) + draw(0.05, 0.3) * detail + 0.07 * noise(4) + draw(0.01, 0.04) * noise(64)).clamp(0, 1)
    return (0.4 + draw(0.4, 0.8) * detail + draw(0.06, 0.14) * noise(64)).clamp(0, 1)


class Reader:
    """Patches of the frozen ViT."""

    def __init__(self, size: int, weights: Path | None) -> None:
        self.vit = create_vit(NAME, image_size=(size, size)).eval()
        if weights is not None:
            load_backbone_weights(self.vit, name=NAME, pretrained=str(weights))
        self.transform = EvaluationTransform((size, size), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def images(self, records: Sequence[Record]) -> Tensor:
        """`(n, M, 1, H, W)` in [0, 1]; the images of this set are grey."""
        return torch.stack([self.transform(load_images(each))[:, :1] for each in records])

    def patches(self, images: Tensor) -> Tensor:
        """`(n, 1, H, W)` -> `(n, N, D)`."""
        found = []
        with torch.inference_mode():
            for some in images.split(ITEMS * NUM_MODALITIES):
                shown = standardised(normalize(some.expand(-1, 3, -1, -1), list(MEAN), list(STD)))
                found += self.vit.forward_intermediates(
                    shown, indices=[BLOCKS - 1], norm=True, output_fmt="NLC", intermediates_only=True
                )
        return torch.cat(found)


def slots(values: Tensor, cells: int) -> Tensor:
    """The mean of the values `(n, M, N, D)` in each cell, `(n, M, cells * cells, D)`."""
    side = round(values.shape[2] ** 0.5)
    grid = values.transpose(2, 3).flatten(0, 1).unflatten(-1, (side, side))
    pooled = functional.adaptive_avg_pool2d(grid, cells).flatten(2)
    return pooled.transpose(1, 2).unflatten(0, (-1, NUM_MODALITIES))


def margins(patches: Tensor, labels: Labels) -> Tensor:
    """How much more a patch resembles its place in its true matches than in strangers, `(n, M, N)`; sees labels."""
    same = labels.identity[:, None] == labels.identity
    matches, strangers = (same & (labels.camera[:, None] != labels.camera)).float(), (~same).float()
    contrast = matches / matches.sum(1, keepdim=True) - strangers / strangers.sum(1, keepdim=True)
    unit = functional.normalize(patches, dim=-1)
    return (unit * torch.einsum("qg,gmnd->qmnd", contrast, unit)).sum(-1)


def kept_features(patches: Tensor, scores: Tensor, cells: int, *, together: bool) -> Tensor:
    """Features of the better half by scores `(n, M, N)`, of each spectrum or of all together: then each spectrum has
    the length of its share of what is kept.
    """
    rows = scores.flatten(1) if together else scores
    mask = select_top(rows, rows.shape[-1] // 2)[1].view(scores.shape).float()
    counted = slots(mask[..., None], cells).clamp_min(1e-6)
    spectra = functional.normalize((slots(patches * mask[..., None], cells) / counted).flatten(2), dim=-1)
    return spectra * mask.mean(-1, keepdim=True)


def rules(items: Items, cells: int, draws: int) -> Iterator[tuple[str, Tensor]]:
    """Name and feature `(n, ...)` of everything that is compared."""
    patches = items.patches
    for contrast, name in CONTRASTS.items():
        yield name, finish_slots(slots(slot_values(patches, contrast), cells), contrast)
    spectra = functional.normalize(slots(patches, cells).flatten(2), dim=-1)  # (n, M, F)
    for size in (1, 2, 3):
        for chosen in itertools.combinations(range(NUM_MODALITIES), size):
            yield f"spectra {' '.join('VNT'[each] for each in chosen)}", spectra[:, list(chosen)]
    apart = 1.0 - functional.cosine_similarity(patches, patches.mean(dim=2, keepdim=True), dim=-1)
    margin = margins(patches, items.labels)
    for name, scores in (("apart from the image's mean", apart), ("oracle", margin)):
        yield f"half of each spectrum, {name}", kept_features(patches, scores, cells, together=False)
        yield f"half of all together, {name}", kept_features(patches, scores, cells, together=True)
    yield "weight of each spectrum, oracle", spectra * margin.mean(-1, keepdim=True).clamp_min(0.0)
    for draw in range(draws):
        scores = torch.rand(patches.shape[2], generator=torch.Generator().manual_seed(draw)).expand(apart.shape)
        yield f"random half, draw {draw + 1}", kept_features(patches, scores, cells, together=False)


def measured(items: Items, name: str, feature: Tensor, rule: str, *, power: float = 0.0) -> Cell:
    """The average precision of each query by the cosine of whole features, or with adaptive fusion of this power."""
    whole, labels = feature.flatten(1), items.labels
    if power:
        spectra = {modality: [modality] for modality in range(NUM_MODALITIES)}
        counted = counted_pairs(labels, labels)
        distance = fused_distance(whole, whole, spectra, counted, num_blocks=NUM_MODALITIES, power=power)
    else:
        unit = functional.normalize(whole, dim=-1)
        distance = -(unit @ unit.T)
    found = rank_metrics(distance, labels, labels, Protocol(rule, rule))
    identity = np.array([str(each) for each in items.labels.identity.tolist()])
    return Cell(name, found.average_precision.numpy()[None], identity, np.array(items.scene))


def table(items: Items, title: str, cells: int, draws: int) -> dict[str, dict[str, dict[str, float | list[float]]]]:
    """By rule, name and scene: mAP, or a difference with its interval; printed as Markdown."""
    scenes, result = [None, *dict.fromkeys(items.scene)], {}
    features = dict(rules(items, cells, draws))
    for rule in RULES:
        found = {name: measured(items, name, feature, rule) for name, feature in features.items()}
        for name in CONTRASTS.values():
            for power in POWERS:
                fused = f"{name}, adaptive fusion {power}"
                found[fused] = measured(items, fused, features[name], rule, power=power)
        rows = {name: [each.seeds(scene) for scene in scenes] for name, each in found.items()}
        subsets = [each for name, each in found.items() if name.startswith("spectra ")]
        rows |= {f"best spectra of each {of}": [[best(subsets, scene, of)] for scene in scenes] for of in GROUPS}
        random = [rows.pop(name) for name in list(rows) if name.startswith("random half")]
        for name, summary in (("mean", np.mean), ("deviation", np.std), ("best", np.max)):
            rows[f"random half of {draws}, {name}"] = [[float(summary(each))] for each in zip(*random, strict=True)]
        for one, other in DIFFERENCES:
            rows[f"{one} - {other}"] = [list(difference(found[one], found[other], scene)) for scene in scenes]
        names = [scene or "all" for scene in scenes]
        print(f"\n{title}, {cells} x {cells} cells, {rule}\n\n| | " + " | ".join(names) + " |")
        print("|---|" + "---:|" * len(scenes))
        for name, values in rows.items():
            print(f"| {name} | " + " | ".join(map(shown, values)) + " |", flush=True)
        result[rule] = {name: dict(zip(names, map(rounded, values), strict=True)) for name, values in rows.items()}
    return result


def rounded(values: list[float]) -> float | list[float]:
    """What the file holds: one value, or a difference with the ends of its interval."""
    return round(values[0], 2) if len(values) == 1 else [round(value, 2) for value in values]


def best(cells: Sequence[Cell], scene: str | None, of: str) -> float:
    """MAP in percent where each scene or identity is given the subset of spectra that is best for it."""
    chosen = cells[0].of(scene)
    precision = np.stack([cell.precision[0] for cell in cells])[:, chosen]  # (subsets, Q)
    group = (cells[0].identity if of == "identity" else cells[0].scene)[chosen]
    total = sum(precision[:, group == each].sum(axis=1).max() for each in np.unique(group))
    return 100 * float(total) / int(chosen.sum())


def shown(values: list[float]) -> str:
    """One value, or a difference with its interval."""
    return f"{values[0]:.1f}" if len(values) == 1 else f"{values[0]:+.1f} [{values[1]:+.1f}, {values[2]:+.1f}]"


def few(records: Sequence[Record]) -> list[Record]:
    """The records of the first `QUICK_IDENTITIES` identities of each scene."""
    kept: dict[str, set[str]] = {}
    for record in records:
        own = kept.setdefault(record.scene or "", set())
        if len(own) < QUICK_IDENTITIES:
            own.add(record.identity)
    return [record for record in records if record.identity in kept[record.scene or ""]]


def settings(reader: Reader, root: Path, *, quick: bool = False) -> Iterator[tuple[str, Items]]:
    """The test split, the training split, and the latter with its second capture veiled in some spectra."""
    index = scan("tno_scenes", root)
    for split, records in (("test", index.query), ("train", index.train)):
        records = few(records) if quick else records
        images, (labels, _) = reader.images(records), rank_labels(records, records)
        patches = reader.patches(images.flatten(0, 1)).unflatten(0, (-1, NUM_MODALITIES))
        scene = [record.scene or "" for record in records]
        yield split, Items(patches, labels, scene)
    second = labels.camera == labels.camera.max()
    generator = torch.Generator().manual_seed(3)
    for name, (kind, spectra) in VEILS.items():
        changed = patches.clone()
        for spectrum in spectra:
            changed[second, spectrum] = reader.patches(veiled(images[second, spectrum], kind, generator))
        yield f"train, {name}", Items(changed, labels, scene)


def main() -> None:
    """Print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/tno_scenes"))
    parser.add_argument("--weights", type=Path, help="needed without --quick")
    parser.add_argument("--cells", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    parser.add_argument("--quick", action="store_true", help="try the script: random weights, few and tiny images")
    given = parser.parse_args()
    if given.weights is None and not given.quick:
        parser.error("--weights is missing: a file of vit_small_patch14_dinov2, or try the script with --quick")
    side = (QUICK_SIZE if given.quick else SIZE) // PATCH
    if not all(1 <= cells <= side for cells in given.cells):
        raise InputError(f"--cells are {given.cells}; the patches form {side} x {side}: give from 1 to {side}")
    if given.out:
        check_writable(given.out)
    torch.manual_seed(0)
    reader = Reader(QUICK_SIZE if given.quick else SIZE, None if given.quick else given.weights)
    result = {
        title: {f"{cells} x {cells}": table(items, title, cells, 2 if given.quick else 20) for cells in given.cells}
        for title, items in settings(reader, given.root, quick=given.quick)
    }
    if given.quick:
        print("\nThese numbers are no results: the weights are random, and most images are left out (--quick).")
    if given.out:
        write_json(given.out, result)


if __name__ == "__main__":
    with guarded():
        main()
