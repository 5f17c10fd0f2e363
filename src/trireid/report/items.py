"""Some triplets of a run put through its model: what was selected of them, for pages and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn import functional

from trireid.config.load import override_config
from trireid.data.dataset import restrict
from trireid.data.images import load_images
from trireid.data.range_settings import known_ranges
from trireid.data.ranges import NO_RANGES, Ranges
from trireid.data.reading import ImageError
from trireid.data.records import Record
from trireid.data.transforms import EvaluationTransform
from trireid.errors import InputError
from trireid.evaluation.protocols import ranking_masks, take
from trireid.evaluation.ranking import Ranking
from trireid.models.reid import ReIDModel
from trireid.report.run_folder import RunFolder
from trireid.train.checkpoint import build_for, load_checkpoint
from trireid.types import Selection

MAX_NOTES = 3
"""Images that cannot be read and are named one by one."""

BATCH = 8


@dataclass(frozen=True)
class OpenModel:
    """A trained model on the CPU, and how its inputs are made.

    Attributes:
        model: in evaluation mode.
        transform: images to what the model takes.
        cameras: index of each known camera.
        modalities: those that the run uses.
        ranges: of the values of images of more than 8 bits, as the run was trained with.
    """

    model: ReIDModel
    transform: EvaluationTransform
    cameras: dict[str, int]
    modalities: tuple[str, ...]
    ranges: Ranges = NO_RANGES

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that the model sees."""
        return self.transform.image_size


@dataclass(frozen=True)
class ModelInput:
    """Triplets as the model takes them.

    Attributes:
        records: those whose images could be read, without the modalities that the run does not use.
        images: `(B, M, 3, H, W)`.
        present: `(B, M)` bool.
        camera: `(B,)` int64, -1 not known.
    """

    records: tuple[Record, ...]
    images: Tensor
    present: Tensor
    camera: Tensor

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class SelectedItem:
    """One triplet and what was selected of it.

    Attributes:
        record: the triplet.
        present: `(1, M)` bool.
        selection: by stage, each of a batch of one.
    """

    record: Record
    present: Tensor
    selection: dict[str, Selection]


def open_model(run: RunFolder) -> OpenModel:
    """The last checkpoint of a run as a model.

    Raises:
        CheckpointError: there is none, it is damaged or does not fit its settings.
    """
    checkpoint = load_checkpoint(run.path)
    data = override_config(checkpoint.config, run.overrides).data
    return OpenModel(
        model=build_for(checkpoint, checkpoint.config).eval(),
        transform=EvaluationTransform(checkpoint.config.data.image_size, data.mean, data.std, data.interpolation),
        cameras={name: index for index, name in enumerate(checkpoint.label_map.cameras)},
        modalities=data.modalities,
        ranges=known_ranges(data.range),
    )


def prepare(opened: OpenModel, records: Sequence[Record], notes: list[str]) -> ModelInput:
    """Read the images of some records; one that cannot be read is left out with a note, many with one for the rest.

    Raises:
        InputError: none of them can be read.
    """
    kept, images, lost = [], [], []
    for record in restrict(records, opened.modalities):
        try:
            images.append(opened.transform(load_images(record, opened.ranges)))  # (M, 3, H, W)
            kept.append(record)
        except ImageError as error:
            lost.append(f"{record.name} is left out of the maps: {error}")
    if not kept:
        reason = lost[0] if lost else "no record was given"
        raise InputError(
            f"the images of {len(records)} triplets cannot be read ({reason}); if the data set was moved, give its "
            "place with data.root=..."
        )
    notes += lost[:MAX_NOTES]
    if len(lost) > MAX_NOTES:
        notes.append(f"{len(lost) - MAX_NOTES} more triplets are left out of the maps for want of their images")
    return ModelInput(
        records=tuple(kept),
        images=torch.stack(images),
        present=torch.tensor([[source is not None for source in record.images] for record in kept]),
        camera=torch.tensor([opened.cameras.get(record.camera or "", -1) for record in kept]),
    )


def select_items(opened: OpenModel, given: ModelInput) -> list[SelectedItem]:
    """What the model selects of each triplet; the selection is empty where it selects nothing."""
    items = []
    for start in range(0, len(given), BATCH):
        rows = slice(start, start + BATCH)
        with torch.inference_mode():
            out = opened.model(given.images[rows], present=given.present[rows], camera=given.camera[rows])
        for row, record in enumerate(given.records[rows]):
            one = itemgetter(slice(row, row + 1))
            selection = {name: each.map(one) for name, each in out.selection.items()}
            items.append(SelectedItem(record, one(out.present), selection))
    return items


def joined(selections: Sequence[Selection]) -> Selection:
    """Selections of single triplets at one stage as one of a batch."""
    weights = [each.weights for each in selections if each.weights is not None]
    return Selection(
        indices=torch.cat([each.indices for each in selections]),
        scores=torch.cat([each.scores for each in selections]),
        mask=torch.cat([each.mask for each in selections]),
        grid=selections[0].grid,
        weights=torch.cat(weights) if weights else None,
    )


def matching_feature(saved: Ranking, record: Record) -> Tensor | None:
    """Mean of the unit joint features that are right for a query, `(F,)`; None where it has no match or is unknown."""
    rows = [row for row, other in enumerate(saved.query.records) if other.name == record.name]
    if not rows:
        return None
    query = take(saved.query.labels, slice(rows[0], rows[0] + 1))
    matches, _ = ranking_masks(query, saved.gallery.labels, saved.protocol)  # (1, G)
    right = saved.gallery.features.features["joint"][matches[0]]
    return functional.normalize(right, dim=-1).mean(dim=0) if len(right) else None


def spread_records(records: Sequence[Record], count: int) -> list[Record]:
    """The first record of some identities, evenly over all of them."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(record.identity, record)
    every = list(first.values())
    count = min(count, len(every))
    return [every[index * len(every) // count] for index in range(count)]


def named_records(records: Sequence[Record], ids: Sequence[str], count: int) -> list[Record]:
    """Records by identity (the first `count` of each) or by their own name.

    Raises:
        InputError: a name that is neither; the nearest are named.
    """
    chosen: list[Record] = []
    for name in ids:
        own = [record for record in records if record.name == name] or [
            record for record in records if record.identity == name
        ]
        if not own:
            known = sorted({record.identity for record in records} | {record.name for record in records})
            close = get_close_matches(name, known, n=3, cutoff=0.0)
            raise InputError(f"no query is called {name} or has that identity; the nearest are {', '.join(close)}")
        chosen += own[:count]
    return chosen
