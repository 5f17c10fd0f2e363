"""What each block of a pretrained ViT sees of a place, without any training: mAP of its patches on tno_scenes.

    python benchmarks/tno_blocks.py --root data/tno_scenes --weights FILE [--split train] (TNO; minutes on a CPU)

FILE holds vit_small_patch14_dinov2 (model.backbone.pretrained). The patches after a block are averaged over the image,
or over each cell of a grid, scaled to unit length in each spectrum, and compared side by side. The training split is
the one to choose a depth by: nothing is learnt from it here. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from landsat_yardsticks import RULES
from torch import Tensor
from torch.nn import functional

from trireid.cli.guard import guarded
from trireid.data.images import load_images
from trireid.data.labels import rank_labels
from trireid.data.readers import scan
from trireid.data.records import Record
from trireid.data.transforms import EvaluationTransform
from trireid.evaluation.metrics import pairwise_distance, rank_metrics
from trireid.models.backbone import create_vit
from trireid.models.modality import standardised
from trireid.models.weights import load_backbone_weights
from trireid.types import NUM_MODALITIES, Protocol

NAME, MEAN, STD = "dinov2_vit_s14", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ITEMS = 32


def features(records: Sequence[Record], given: argparse.Namespace) -> dict[tuple[int, str], Tensor]:
    """`(n, M, D)` by block and grid."""
    size = (given.size, given.size)
    vit = create_vit(NAME, image_size=size).eval()
    load_backbone_weights(vit, name=NAME, pretrained=str(given.weights))
    transform = EvaluationTransform(size, MEAN, STD)
    found: dict[tuple[int, str], list[Tensor]] = {}
    with torch.inference_mode():
        for start in range(0, len(records), ITEMS):
            images = torch.stack([transform(load_images(each)) for each in records[start : start + ITEMS]]).flatten(
                0, 1
            )
            images = images if given.raw else standardised(images)
            tokens = vit.forward_intermediates(images, indices=given.blocks, output_fmt="NCHW", intermediates_only=True)
            for block, grid in zip(given.blocks, tokens, strict=True):  # (B * M, D, rows, columns)
                for cells in given.cells:
                    pooled = functional.adaptive_avg_pool2d(grid, cells).flatten(1)
                    found.setdefault((block + 1, f"{cells} x {cells}"), []).append(pooled.half())
    return {key: torch.cat(parts).unflatten(0, (-1, NUM_MODALITIES)) for key, parts in found.items()}


def rows(records: Sequence[Record], found: dict[tuple[int, str], Tensor]) -> Iterator[str]:
    """Markdown."""
    labels, _ = rank_labels(records, records)
    cells = list(dict.fromkeys(key[1] for key in found))
    yield "| blocks | " + " | ".join(f"{each}, {rule}" for each in cells for rule in RULES) + " |"
    yield "|---:|" + "---:|" * (len(cells) * len(RULES))
    for block in dict.fromkeys(key[0] for key in found):
        shown = []
        for each in cells:
            unit = functional.normalize(found[block, each].float(), dim=-1).flatten(1)
            distance = pairwise_distance(unit, unit)
            shown += [rank_metrics(distance, labels, labels, Protocol(rule, rule)).as_dict()["mAP"] for rule in RULES]
        yield f"| {block} | " + " | ".join(f"{100 * value:.1f}" for value in shown) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/tno_scenes"), help="folder of tno_scenes")
    parser.add_argument("--weights", type=Path, required=True, help="file of vit_small_patch14_dinov2")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="default: train")
    parser.add_argument("--size", type=int, default=112, help="pixels, a multiple of 14")
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 6, 8, 9, 10, 12], help="numbers from 1 to 12")
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 2, 4], help="sides of grids, in cells")
    parser.add_argument("--raw", action="store_true", help="images as they are, not standardised")
    given = parser.parse_args()
    given.blocks = [block - 1 for block in given.blocks]
    index = scan("tno_scenes", given.root)
    records = index.train if given.split == "train" else index.query
    for line in rows(records, features(records, given)):
        print(line, flush=True)


if __name__ == "__main__":
    with guarded():
        main()
