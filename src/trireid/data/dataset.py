"""A torch data set that makes batches of uint8 pixels and labels from records and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from trireid.data.labels import LabelMap
from trireid.data.pixels import Pixels
from trireid.data.records import Record
from trireid.data.sampler import SampleKey
from trireid.errors import ConfigError, DataError
from trireid.types import MODALITIES, Batch


class TripletDataset(Dataset[Batch]):
    """The triplets of one split.

    Args:
        records: the triplets; `Batch.item` is the position in this sequence.
        pixels: pixels of the same records.
        label_map: indices of the training identities and cameras.
    """

    def __init__(self, records: Sequence[Record], *, pixels: Pixels, label_map: LabelMap) -> None:
        self.records, self.pixels = tuple(records), pixels
        self._label = torch.tensor([label_map.identity_index(record.identity) for record in records])
        self._camera = torch.tensor([label_map.camera_index(record.camera) for record in records])

    def __len__(self) -> int:
        return len(self.records)

    @property
    def complete(self) -> bool:
        """True if every triplet has all modalities, so that no presence mask is needed."""
        return all(source is not None for record in self.records for source in record.images)

    def __getitem__(self, key: int | SampleKey) -> Batch:
        """One item as a batch of one; a plain index is also the seed of the augmentation.

        Raises:
            ImageError: an image cannot be read.
        """
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> Batch:
        """A whole batch at once; torch's loader calls this in place of `__getitem__`."""
        pairs = [key if isinstance(key, tuple) else (key, key) for key in keys]
        positions = [position for position, _ in pairs]
        pixels, present = self.pixels.read(positions)
        item = torch.tensor(positions)
        return Batch(
            images=pixels,  # (B, M, 3, H, W)
            present=present,
            label=self._label[item],
            camera=self._camera[item],
            item=item,
            seed=torch.tensor([seed for _, seed in pairs]),
        )


def restrict(records: Sequence[Record], modalities: Sequence[str]) -> tuple[Record, ...]:
    """Keep the images of the given modalities only; the files of the others are never opened.

    Raises:
        ConfigError: a modality is unknown, or the list is empty.
        DataError: a triplet has none of the modalities.
    """
    unknown = sorted(set(modalities) - set(MODALITIES))
    if unknown or not modalities:
        raise ConfigError(f"data.modalities {list(modalities)}: choose one or more of {', '.join(MODALITIES)}")
    restricted = tuple(_restrict(record, modalities) for record in records)
    bare = [record.name for record in restricted if not any(record.images)]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(restricted)} triplets have none of the modalities {', '.join(modalities)}, "
            f"the first is {bare[0]}; add a modality to data.modalities or leave these triplets out of the set"
        )
    return restricted


def _restrict(record: Record, modalities: Sequence[str]) -> Record:
    images = tuple(
        source if name in modalities else None for name, source in zip(MODALITIES, record.images, strict=True)
    )
    return replace(record, images=images)
