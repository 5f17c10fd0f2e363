"""What one gets on landsat_places without learning: the correlation of pixels, for both rules of the ranking.

    python benchmarks/landsat_yardsticks.py [FOLDER]    (default ../shared/data/landsat_places; seconds on one core)

`camera` is the rule of RGBNT201: a query does not see its own identity on its own date, the other identities of that
date stay as distractors. `cross_camera` hides its own date altogether, so that only the other date is ranked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from trireid.cli.guard import guarded
from trireid.data.images import load_images
from trireid.data.labels import rank_labels
from trireid.data.readers import scan
from trireid.data.records import Record
from trireid.errors import DataError
from trireid.evaluation.metrics import pairwise_distance, rank_metrics
from trireid.types import MODALITIES, Exclusion, Protocol

RULES: tuple[Exclusion, ...] = ("camera", "cross_camera")


def pixel_features(records: Sequence[Record]) -> Tensor:
    """The pixels of every image less its mean, at unit length: `(Q, M, pixels)`; distances rank as correlations do."""
    images = torch.stack([torch.stack([image.flatten() for image in _complete(record)]) for record in records])
    pixels = images.double()  # (Q, M, 3 * h * w)
    return functional.normalize(pixels - pixels.mean(dim=-1, keepdim=True), dim=-1)


def yardsticks(root: Path) -> dict[str, dict[Exclusion, dict[str, float]]]:
    """mAP, mINP and CMC in [0, 1] of each modality and of all three side by side, by rule."""
    index = scan("rgbnt201", root)
    labels, _ = rank_labels(index.query, index.gallery)
    features = pixel_features(index.query)
    chosen = {name: features[:, number] for number, name in enumerate(MODALITIES)}
    chosen["all three"] = features.flatten(1)
    return {
        name: {
            rule: rank_metrics(pairwise_distance(each, each), labels, labels, Protocol(rule, rule)).as_dict()
            for rule in RULES
        }
        for name, each in chosen.items()
    }


def _complete(record: Record) -> list[Tensor]:
    images = [image for image in load_images(record) if image is not None]
    assert len(images) == len(MODALITIES)  # the reader of this layout lets nothing else through
    return images


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("../shared/data/landsat_places")
    parser.add_argument(
        "folder", type=Path, nargs="?", default=default, help="of landsat_places, with train/ and test/"
    )
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give the folder of landsat_places, with train/ and test/")
    found = yardsticks(folder)
    print(f"{'pixel correlation':18}" + "".join(f"{rule + ' mAP':>18}{'rank-1':>8}" for rule in RULES))
    for name, figures in found.items():
        cells = (f"{100 * figures[rule]['mAP']:18.1f}{100 * figures[rule]['rank1']:8.1f}" for rule in RULES)
        print(f"{name:18}" + "".join(cells))


if __name__ == "__main__":
    with guarded():
        main()
