"""Opens the data of a run: the loader of the training set, and the splits that are evaluated."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import DataLoader

from trireid.config.schema import Config, RangeConfig
from trireid.data.augment import TrainTransform
from trireid.data.dataset import TripletDataset, restrict
from trireid.data.labels import LabelMap, copied_queries, rank_labels
from trireid.data.loader import evaluation_loader, train_loader
from trireid.data.orientations import expand_orientations
from trireid.data.pixels import CachedPixels, FilePixels, open_pixels
from trireid.data.range_settings import depth_messages, known_ranges, resolve_ranges, with_ranges
from trireid.data.readers import scan
from trireid.data.records import DatasetIndex, Record
from trireid.data.splits import hold_out
from trireid.data.transforms import Normalise
from trireid.errors import DataError
from trireid.names import Interpolation
from trireid.train.progress import progress_bar
from trireid.types import UNKNOWN, Batch, Labels, Protocol

_log = logging.getLogger(__name__)

MAX_LISTED_FAULTS = 20


@dataclass(frozen=True)
class EvaluationSplit:
    """A query and a gallery, ready to be ranked.

    Attributes:
        name: `test` or `validation`.
        query_loader, gallery_loader: gallery None where the queries are the gallery.
        query_labels, gallery_labels: gallery None where its loader is.
        query_records, gallery_records: the same tuple where the queries are the gallery.
        protocol: what a query must not see.
        transform: makes the input of the model from the pixels of the loaders, on the device.
        num_shares: processes that the batches were dealt to; the loaders hold the part of this one.
        messages: what a reader of its metrics must know, one line each.
    """

    name: str
    query_loader: DataLoader[Batch]
    gallery_loader: DataLoader[Batch] | None
    query_labels: Labels
    gallery_labels: Labels | None
    query_records: tuple[Record, ...]
    gallery_records: tuple[Record, ...]
    protocol: Protocol
    transform: Normalise
    num_shares: int = 1
    messages: tuple[str, ...] = ()

    @property
    def num_items(self) -> int:
        """How many triplets go through the model in this process."""
        return count_items(self.query_loader) + (0 if self.gallery_loader is None else count_items(self.gallery_loader))

    def fingerprint(self) -> dict[str, str]:
        """What query and gallery hold: equal where the same items are read in the same order."""
        sides = {"queries": self.query_records, "gallery": self.gallery_records}
        return {f"the {self.name} set's {side}": _fingerprint(records) for side, records in sides.items()}


@dataclass(frozen=True)
class TrainingInputs:
    """The data of a training run.

    Attributes:
        index: the data set as read.
        train_records: without the held-out identities; with `dihedral_identities` in all eight orientations.
        label_map: of the training records.
        loader: full batches of pixels; `set_epoch` before each epoch.
        transform: augments them on the device.
        plain_loader: the same triplets in their order, each once.
        test: the data set's own query and gallery.
        validation: held-out training identities against each other, None where none are held out.
        value_range: `data.range` with what was measured on the training images.
    """

    index: DatasetIndex
    train_records: tuple[Record, ...]
    label_map: LabelMap
    loader: DataLoader[Batch]
    transform: TrainTransform
    plain_loader: DataLoader[Batch]
    test: EvaluationSplit
    validation: EvaluationSplit | None
    value_range: RangeConfig

    @property
    def complete(self) -> bool:
        """True where every training triplet has all modalities."""
        return isinstance(self.loader.dataset, TripletDataset) and self.loader.dataset.complete

    def fingerprint(self) -> dict[str, str]:
        """What the splits hold, by their names: equal where the same items are read in the same order."""
        held_out = {} if self.validation is None else self.validation.fingerprint()
        own = {"the training set": _fingerprint(self.train_records), "data.range": str(self.value_range.model_dump())}
        return {**own, **self.test.fingerprint(), **held_out}

    @property
    def selection_split(self) -> EvaluationSplit:
        """The split that chooses the best epoch."""
        return self.test if self.validation is None else self.validation


def _fingerprint(records: Sequence[Record]) -> str:
    """The number of items, and a digest of who they are."""
    known = "\n".join(repr((record.name, record.identity, record.camera, record.orientation)) for record in records)
    return f"{len(records)} triplets, digest {hashlib.sha256(known.encode(errors='backslashreplace')).hexdigest()[:8]}"


def count_items(loader: DataLoader[Batch]) -> int:
    """Number of triplets of a loader of `evaluation_loader`."""
    return sum(map(len, loader.batch_sampler or ()))


def open_inputs(
    config: Config, *, device: torch.device | str = "cpu", share: tuple[int, int] = (0, 1), progress: bool = False
) -> TrainingInputs:
    """Read the data set and make the loaders of a run.

    Args:
        config: the whole configuration.
        device: where training runs; for CUDA, batches come in page-locked memory.
        share: (number of this process, number of processes): each fills a cache of its own and evaluates a part.
        progress: show bars while images are checked (`data.skip_bad`) and decoded.

    Raises:
        DataError: Something is wrong with the data set.
        ConfigError: The settings of the batches are not possible with this data.
    """
    data, device = config.data, torch.device(device)
    index = scan_index(config, progress=progress)
    records, held_out = training_records(config, index)
    augmentation = data.augmentation.model_dump(exclude={"interpolation", "dihedral_identities"})
    label_map = LabelMap.from_records(records)
    if len(label_map.identities) < 2:
        raise DataError(
            f"{data.root}: the training set has {len(label_map.identities)} identity, which leaves nothing to tell "
            "apart; give one with at least 2"
        )
    records = restrict(records, data.modalities)
    config = with_ranges(config, resolve_ranges(data.range, records, workers=data.workers))
    pixels_of = partial(_open_pixels, config=config, device=device, num_processes=share[1], progress=progress)
    pixels = pixels_of("training", records, data.augmentation.interpolation)
    loader = train_loader(
        records,
        pixels=pixels,
        label_map=label_map,
        batch_size=data.batch_size,
        num_instances=data.num_instances,
        sampler=data.sampler,
        seed=config.train.seed,
        workers=data.workers,
        pin_memory=device.type == "cuda",
    )
    plain = _plain_loader(records, pixels, label_map, config=config, device=device, share=share)
    split_of = partial(_open_split, label_map=label_map, config=config, device=device, pixels_of=pixels_of, share=share)
    validation = split_of("validation", held_out, held_out, index.protocol) if held_out else None
    test = split_of("test", index.query, index.gallery, index.protocol)
    transform = TrainTransform(mean=data.mean, std=data.std, **augmentation)
    return TrainingInputs(index, records, label_map, loader, transform, plain, test, validation, config.data.range)


def training_records(config: Config, index: DatasetIndex) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """The training triplets of a run, with all their modalities, and those that are held out."""
    data = config.data
    records, held_out = hold_out(index.train, data.val_ids, seed=config.train.seed, exclude=index.protocol.exclude)
    if data.augmentation.dihedral_identities:  # after the hold-out, so that no place is on both sides
        records = expand_orientations(records)
    return records, held_out


def open_plain(
    config: Config,
    index: DatasetIndex,
    label_map: LabelMap,
    *,
    device: torch.device,
    share: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> DataLoader[Batch]:
    """The training triplets of a run in their order, each once, as training reads them but without augmentation."""
    records = restrict(training_records(config, index)[0], config.data.modalities)
    interpolation = config.data.augmentation.interpolation
    pixels = _open_pixels(
        "training", records, interpolation, config=config, device=device, num_processes=share[1], progress=progress
    )
    return _plain_loader(records, pixels, label_map, config=config, device=device, share=share)


def _plain_loader(
    records: Sequence[Record],
    pixels: FilePixels | CachedPixels,
    label_map: LabelMap,
    *,
    config: Config,
    device: torch.device,
    share: tuple[int, int],
) -> DataLoader[Batch]:
    return evaluation_loader(
        records,
        pixels=pixels,
        label_map=label_map,
        batch_size=config.evaluate.batch_size,
        workers=config.data.workers,
        pin_memory=device.type == "cuda",
        share=share,
    )


def open_test(
    config: Config,
    index: DatasetIndex,
    label_map: LabelMap,
    *,
    device: torch.device,
    share: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> EvaluationSplit:
    """The data set's own query and gallery, for the cameras of a label map."""
    pixels_of = partial(_open_pixels, config=config, device=device, num_processes=share[1], progress=progress)
    return _open_split(
        "test",
        index.query,
        index.gallery,
        index.protocol,
        label_map=label_map,
        config=config,
        device=device,
        pixels_of=pixels_of,
        share=share,
    )


def _open_pixels(
    name: str,
    records: Sequence[Record],
    interpolation: Interpolation,
    *,
    config: Config,
    device: torch.device,
    num_processes: int,
    progress: bool,
) -> FilePixels | CachedPixels:
    data = config.data
    with progress_bar(f"decoding {name} images", enabled=progress, transient=True) as bar:
        return open_pixels(
            records,
            image_size=data.image_size,
            interpolation=interpolation,
            cache=data.cache,
            device=device,
            folder=data.cache_folder,
            workers=data.workers,
            num_processes=num_processes,
            ranges=known_ranges(data.range),
            report=bar.reach,
            name=name,
        )


def _open_split(
    name: str,
    query: tuple[Record, ...],
    gallery: tuple[Record, ...],
    protocol: Protocol,
    *,
    label_map: LabelMap,
    config: Config,
    device: torch.device,
    pixels_of: Callable[[str, Sequence[Record], Interpolation], FilePixels | CachedPixels],
    share: tuple[int, int],
) -> EvaluationSplit:
    """Loaders and labels of one query and gallery; the same tuple twice is computed once."""
    data = config.data

    def loader(name: str, records: Sequence[Record]) -> DataLoader[Batch]:
        shown = restrict(records, data.modalities)
        return evaluation_loader(
            shown,
            pixels=pixels_of(name, shown, data.interpolation),
            label_map=label_map,
            batch_size=config.evaluate.batch_size,
            workers=data.workers,
            pin_memory=device.type == "cuda",
            share=share,
        )

    query_labels, gallery_labels = rank_labels(query, gallery)
    same = query is gallery
    return EvaluationSplit(
        name=name,
        query_loader=loader(name if same else f"{name} query", query),
        gallery_loader=None if same else loader(f"{name} gallery", gallery),
        query_labels=query_labels,
        gallery_labels=None if same else gallery_labels,
        query_records=query,
        gallery_records=gallery,
        protocol=protocol,
        transform=Normalise(data.mean, data.std),
        num_shares=share[1],
        messages=(
            *_copies(query, gallery, query_labels, gallery_labels),
            *_messages(restrict(query if same else (*query, *gallery), data.modalities), label_map, config),
        ),
    )


def _copies(
    query: tuple[Record, ...], gallery: tuple[Record, ...], query_labels: Labels, gallery_labels: Labels
) -> tuple[str, ...]:
    """A message where queries are in the gallery under another name."""
    count = copied_queries(query, gallery, query_labels=query_labels, gallery_labels=gallery_labels)
    if not count:
        return ()
    return (
        f"{count} of {len(query)} queries have the same images as gallery items of another name: each counts as the "
        "item itself and is not found",
    )


def _messages(records: Sequence[Record], label_map: LabelMap, config: Config) -> tuple[str, ...]:
    """What a reader of the metrics of these records must know."""
    cameras = _unknown_cameras(records, label_map) if config.model.sie_coefficient > 0 else ()
    return (*cameras, *depth_messages(config.data.range, records, workers=config.data.workers))


def _unknown_cameras(records: Sequence[Record], label_map: LabelMap) -> tuple[str, ...]:
    """A message where items are of cameras the model was not trained with: they get the mean of the known cameras."""
    strange = [
        record.camera
        for record in records
        if record.camera is not None and label_map.camera_index(record.camera) == UNKNOWN
    ]
    if not strange or not label_map.cameras:
        return ()
    return (
        f"{len(strange)} of {len(records)} items are of cameras that the model was not trained with "
        f"({_listed(sorted(set(filter(None, strange))))}; it knows {_listed(label_map.cameras)}): they get the mean of "
        "those it knows",
    )


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_root(config: Config) -> None:
    """Refuse a data set that does not exist, before anything that takes time; the error is that of its reader.

    Raises:
        DataError: The folder or file does not exist.
    """
    if not config.data.root.exists():
        scan_index(config)


def scan_index(config: Config, *, progress: bool = False) -> DatasetIndex:
    """Read the data set of a configuration; log what `data.skip_bad` excluded.

    Raises:
        DataError: Something is wrong with it.
    """
    data = config.data
    shown = progress and data.skip_bad
    with progress_bar("checking images", enabled=shown, transient=True) as bar:
        index = scan(
            data.format,
            data.root,
            exclude=data.exclude,
            skip_bad=data.skip_bad,
            progress=bar.reach,
        )
    for note in index.notes:
        _log.warning("%s", note)
    for fault in index.faults[:MAX_LISTED_FAULTS]:
        _log.warning("left out: %s", fault.message)
    if len(index.faults) > MAX_LISTED_FAULTS:
        _log.warning(
            "left out: %d faults in all, listed by `trireid check-data --format %s --root %s`",
            len(index.faults),
            data.format,
            data.root,
        )
    return index
