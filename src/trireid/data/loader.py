"""Data loaders whose batches depend on seed and epoch only, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from trireid.data.dataset import TripletDataset
from trireid.data.labels import LabelMap
from trireid.data.pixels import FilePixels, Pixels
from trireid.data.randomness import seeded_generator
from trireid.data.records import Record
from trireid.data.sampler import IdentitySampler, RandomBatchSampler, UniformIdentitySampler
from trireid.data.workers import check_open_files
from trireid.errors import ConfigError, DataError
from trireid.names import SamplerName
from trireid.types import UNKNOWN, Batch


def train_loader(
    records: Sequence[Record],
    *,
    pixels: Pixels,
    label_map: LabelMap,
    batch_size: int,
    num_instances: int,
    sampler: SamplerName = "identity",
    seed: int,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Full training batches of uint8 pixels; call `set_epoch` before each epoch.

    Args:
        records, pixels, label_map: see `TripletDataset`.
        batch_size: triplets per batch.
        num_instances: triplets of one identity in a batch; `random` does not use it.
        sampler: see `trireid.data.sampler`.
        seed: seed of batches and augmentation.
        workers, pin_memory: see `torch.utils.data.DataLoader`.

    Raises:
        ConfigError, DataError: these records do not allow such batches, see the samplers.
    """
    unknown = [record.name for record in records if label_map.identity_index(record.identity) == UNKNOWN]
    if unknown:
        raise DataError(
            f"{len(unknown)} training triplets have an identity that is not in the label map, the first is "
            f"{unknown[0]}; use the label map of these records"
        )
    dataset = TripletDataset(records, pixels=pixels, label_map=label_map)
    identities = [record.identity for record in records]
    batches: IdentitySampler | RandomBatchSampler
    if sampler in ("identity", "uniform_identity"):
        kind = IdentitySampler if sampler == "identity" else UniformIdentitySampler
        batches = kind(identities, batch_size=batch_size, num_instances=num_instances, seed=seed)
    elif sampler == "random":
        batches = RandomBatchSampler(len(identities), batch_size=batch_size, seed=seed)
    else:
        raise ConfigError(
            f"data.sampler {sampler!r} is unknown; use identity, random or uniform_identity (as upstream)"
        )
    return _loader(dataset, workers=workers, pin_memory=pin_memory, batch_sampler=batches)


def evaluation_loader(
    records: Sequence[Record],
    *,
    pixels: Pixels,
    label_map: LabelMap,
    batch_size: int,
    workers: int = 0,
    pin_memory: bool = False,
    share: tuple[int, int] = (0, 1),
) -> DataLoader[Batch]:
    """Batches of uint8 pixels of all records, in their order; the last batch may be smaller.

    Args:
        records, pixels, label_map: see `TripletDataset`.
        batch_size: triplets per batch.
        workers, pin_memory: see `torch.utils.data.DataLoader`.
        share: (index of this process, number of processes). Whole batches are distributed in turn, so each batch is
            the same as with a single process; the last processes may get none.
    """
    dataset = TripletDataset(records, pixels=pixels, label_map=label_map)
    batches = torch.arange(len(dataset)).split(batch_size) if len(dataset) else ()
    own = [batch.tolist() for batch in batches[share[0] :: share[1]]]
    return _loader(dataset, workers=workers, pin_memory=pin_memory, batch_sampler=own)


def set_epoch(loader: Any, epoch: int) -> None:
    """Set the epoch of a loader of `train_loader`, also after accelerate has wrapped it.

    Raises:
        ConfigError: the loader has no sampler with epochs.
    """
    # accelerate's loaders keep an epoch count of their own and pass it on at each iteration, so both must agree.
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    sampler = getattr(loader, "batch_sampler", None)
    while sampler is not None and not isinstance(sampler, IdentitySampler | RandomBatchSampler):
        sampler = getattr(sampler, "batch_sampler", None)
    if sampler is None:
        raise ConfigError("set_epoch: this loader has no sampler of trireid.data.sampler; create it with train_loader")
    sampler.set_epoch(epoch)


def _loader(dataset: TripletDataset, *, workers: int, pin_memory: bool, **batches: Any) -> DataLoader[Batch]:
    # Reading a filled cache is faster than passing batches between processes.
    num_workers = workers if isinstance(dataset.pixels, FilePixels) else 0
    check_open_files(num_workers)
    return DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        # torch draws a seed for its workers from this generator, so the global one stays unchanged.
        generator=seeded_generator(0, "workers"),
        **batches,
    )


def _as_it_is(batch: Any) -> Any:
    """Return the batch unchanged: the data set makes whole batches itself."""
    return batch
