"""Records -> one-item batches: decode, transform, number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from trireid.data.images import load_images
from trireid.data.labels import LabelMap
from trireid.data.records import Record
from trireid.data.sampler import SampleKey
from trireid.data.transforms import Transform
from trireid.errors import ConfigError, DataError
from trireid.types import MODALITIES, Batch


class TripletDataset(Dataset[Batch]):
    """The triplets of one split.

    Args:
        records: what to read, in this order; `Batch.item` is the position.
        transform: images of a triplet and a generator -> `(M, 3, H, W)`.
        label_map: numbers of the training identities and cameras.
        modalities: the others are absent everywhere, their files are not opened.

    Raises:
        ConfigError: an unknown modality, or none.
        DataError: a triplet that has none of the modalities.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        transform: Transform,
        label_map: LabelMap,
        modalities: Sequence[str] = MODALITIES,
    ) -> None:
        unknown = sorted(set(modalities) - set(MODALITIES))
        if unknown or not modalities:
            raise ConfigError(f"data.modalities {list(modalities)}: choose one or more of {', '.join(MODALITIES)}")
        self.records = tuple(_restrict(record, modalities) for record in records)
        self.transform = transform
        self.label_map = label_map
        bare = [record.name for record in self.records if not any(record.images)]
        if bare:
            raise DataError(
                f"{len(bare)} of {len(self.records)} triplets have none of the modalities {', '.join(modalities)}, "
                f"the first is {bare[0]}; add a modality to data.modalities or leave these triplets out of the set"
            )

    def __len__(self) -> int:
        return len(self.records)

    @property
    def complete(self) -> bool:
        """True where every triplet has all modalities, so that no batch needs to say what is present."""
        return all(source is not None for record in self.records for source in record.images)

    def __getitem__(self, key: int | SampleKey) -> Batch:
        """One item as a batch of one; a plain index stands for itself and is the seed of its augmentation too.

        Raises:
            ImageError: an image cannot be read.
        """
        index, seed = key if isinstance(key, tuple) else (key, key)
        record = self.records[index]
        images = self.transform(load_images(record), torch.Generator().manual_seed(seed))
        return Batch(
            images=images[None],  # (1, M, 3, H, W)
            present=torch.tensor([[source is not None for source in record.images]]),
            label=torch.tensor([self.label_map.identity_index(record.identity)]),
            camera=torch.tensor([self.label_map.camera_index(record.camera)]),
            item=torch.tensor([index]),
        )


def _restrict(record: Record, modalities: Sequence[str]) -> Record:
    """The record without the images of all other modalities."""
    images = tuple(
        source if name in modalities else None for name, source in zip(MODALITIES, record.images, strict=True)
    )
    return replace(record, images=images)
