"""Real images for the check of an exported file: those of the run's data set, or generated ones."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trireid.config.schema import Config
from trireid.data.images import load_images
from trireid.data.range_settings import known_ranges
from trireid.data.ranges import evenly_spaced
from trireid.data.readers import scan
from trireid.data.records import Record
from trireid.data.synthetic import write_synthetic
from trireid.data.transforms import EvaluationTransform
from trireid.errors import TrireidError

NUM_ITEMS = 8
SMALLEST_DEVIATION = 0.01
"""Of pixels in [0, 1]. Features of an image that is nearly flat may be rounding errors, which no two programs share."""


@dataclass(frozen=True)
class CheckImages:
    """Normalised images `(B, M, 3, H, W)` of complete items, and where they come from, in words."""

    images: Tensor
    source: str


def check_images(config: Config, *, count: int = NUM_ITEMS, training: bool = False) -> CheckImages:
    """Images of test (or training) items of the run's data set with all modalities, evenly spaced; else generated."""
    try:
        index = scan(config.data.format, config.data.root)
        images = _read(
            config, _complete(index.train if training else (*index.query, *index.gallery, *index.train)), count
        )
    except (TrireidError, OSError):  # the data are elsewhere or damaged: generated images serve
        images = None
    if images is not None:
        return CheckImages(images, f"{'training' if training else 'test'} images of {config.data.root}")
    with tempfile.TemporaryDirectory(prefix="trireid-") as folder:
        root = Path(folder, "images")
        write_synthetic(root, layout="rgbnt201", num_ids=max(2, count // 2), num_cameras=2, per_camera=1)
        generated = _read(config, _complete(scan("rgbnt201", root).query), count, flat=True)
    assert generated is not None
    return CheckImages(
        generated, "generated images, because those of the run were not found, cannot be read or show nothing"
    )


def _complete(records: tuple[Record, ...]) -> list[Record]:
    return [record for record in records if all(source is not None for source in record.images)]


def _read(config: Config, records: list[Record], count: int, *, flat: bool = False) -> Tensor | None:
    """`(B, M, 3, H, W)`; None where there are too few records, or too few that show something in each spectrum."""
    if len(records) < count:
        return None
    data = config.data
    transform = EvaluationTransform(data.image_size, data.mean, data.std, data.interpolation)
    ranges = known_ranges(data.range)
    spaced = (*evenly_spaced(records, count), *evenly_spaced(records, 4 * count))
    found: list[Tensor] = []
    for place in dict.fromkeys(spaced):
        images = transform(load_images(records[place], ranges))  # (M, 3, H, W)
        deviation = images.flatten(2).std(dim=-1, correction=0) * torch.tensor(data.std)  # (M, 3)
        if flat or bool((deviation.amax(dim=-1) > SMALLEST_DEVIATION).all()):
            found.append(images)
        if len(found) == count:
            return torch.stack(found)
    return None
