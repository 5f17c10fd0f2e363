"""Opens the data of a run: the loader of the training set, and the splits that are evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import DataLoader

from trireid.config.schema import Config, RangeConfig
from trireid.data.augment import TrainTransform
from trireid.data.dataset import TripletDataset, restrict
from trireid.data.filling import Filler
from trireid.data.labels import LabelMap, copied_queries, rank_labels
from trireid.data.loader import evaluation_loader, set_epoch, train_loader
from trireid.data.orientations import expand_orientations
from trireid.data.pixels import Pixels, open_pixels
from trireid.data.range_settings import depth_messages, known_ranges, resolve_ranges, with_ranges
from trireid.data.records import DatasetIndex, Record
from trireid.data.splits import hold_out
from trireid.data.transforms import Normalise
from trireid.data.workers import worker_count
from trireid.errors import DataError
from trireid.names import Interpolation
from trireid.train.progress import progress_bar
from trireid.train.scanning import check_blinding as check_blinding
from trireid.train.scanning import check_root as check_root
from trireid.train.scanning import scan_index as scan_index
from trireid.types import UNKNOWN, Batch, Labels, Protocol


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
        filler: decodes images in the background; None where all are decoded, or decoded at each access.
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
    filler: Filler | None = None

    def __enter__(self) -> TrainingInputs:
        return self

    def __exit__(self, *_: object) -> None:
        """End what still decodes in the background."""
        if self.filler is not None:
            self.filler.close()

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
    """Read the data set and make the loaders of a run; a context manager, at whose end nothing decodes any more.

    For a CUDA device, images are decoded in the background, those of the first batches first; an error of theirs shows
    when batches are read.

    Args:
        config: the whole configuration.
        device: where training runs; for CUDA, batches come in page-locked memory.
        share: (number of this process, number of processes): each fills a cache of its own and evaluates a part.
        progress: show bars while images are checked (`data.skip_bad`) and decoded.

    Raises:
        DataError: Something is wrong with the data set.
        ConfigError: The settings of the batches are not possible with this data.
    """
    config, device = _with_workers(config, share[1]), torch.device(device)
    data = config.data
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
    config = with_ranges(config, resolve_ranges(data.range, records, workers=worker_count(data.workers)))
    filler = filler_for(device, data.workers)
    pixels_of = partial(
        _open_pixels, config=config, device=device, num_processes=share[1], progress=progress, filler=filler
    )
    pixels = pixels_of("training", records, data.augmentation.interpolation)
    loader = train_loader(
        records,
        pixels=pixels,
        label_map=label_map,
        batch_size=data.batch_size,
        num_instances=data.num_instances,
        sampler=data.sampler,
        seed=config.train.seed,
        workers=worker_count(data.workers),
        pin_memory=device.type == "cuda",
    )
    plain = _plain_loader(records, pixels, label_map, config=config, device=device, share=share)
    split_of = partial(_open_split, label_map=label_map, config=config, device=device, pixels_of=pixels_of, share=share)
    validation = split_of("validation", held_out, held_out, index.protocol) if held_out else None
    test = split_of("test", index.query, index.gallery, index.protocol)
    transform = TrainTransform(mean=data.mean, std=data.std, **augmentation)
    if filler is not None:
        set_epoch(loader, 1)
        filler.start([position for batch in loader.batch_sampler or () for position, _ in batch])
    ranges = config.data.range
    return TrainingInputs(index, records, label_map, loader, transform, plain, test, validation, ranges, filler)


def filler_for(device: torch.device, workers: int | None) -> Filler | None:
    """What decodes in the background; None for the CPU, whose cores the training needs."""
    return None if device.type == "cpu" else Filler(workers=worker_count(workers))


def _with_workers(config: Config, num_processes: int) -> Config:
    """The configuration with the number of workers of each process."""
    workers = worker_count(config.data.workers, num_processes=num_processes)
    return config.model_copy(update={"data": config.data.model_copy(update={"workers": workers})})


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
    config = _with_workers(config, share[1])
    records = restrict(training_records(config, index)[0], config.data.modalities)
    interpolation = config.data.augmentation.interpolation
    pixels = _open_pixels(
        "training", records, interpolation, config=config, device=device, num_processes=share[1], progress=progress
    )
    return _plain_loader(records, pixels, label_map, config=config, device=device, share=share)


def _plain_loader(
    records: Sequence[Record],
    pixels: Pixels,
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
        workers=worker_count(config.data.workers),
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
    config = _with_workers(config, share[1])
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
    filler: Filler | None = None,
) -> Pixels:
    data = config.data
    with progress_bar(f"decoding {name} images", enabled=progress, transient=True) as bar:
        return open_pixels(
            records,
            image_size=data.image_size,
            interpolation=interpolation,
            cache=data.cache,
            device=device,
            folder=data.cache_folder,
            workers=worker_count(data.workers),
            num_processes=num_processes,
            ranges=known_ranges(data.range),
            report=bar.reach,
            name=name,
            filler=filler,
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
    pixels_of: Callable[[str, Sequence[Record], Interpolation], Pixels],
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
            workers=worker_count(data.workers),
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
    return (*cameras, *depth_messages(config.data.range, records, workers=worker_count(config.data.workers)))


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
