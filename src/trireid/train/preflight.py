"""Checks whether runs can start, in seconds and before any image is decoded; for grids of many runs."""

from __future__ import annotations

from collections.abc import Mapping

from trireid.config.schema import Config
from trireid.data.labels import LabelMap
from trireid.data.loader import train_loader
from trireid.data.orientations import expand_orientations
from trireid.data.pixels import FilePixels
from trireid.data.readers import read_index
from trireid.data.splits import hold_out
from trireid.errors import ConfigError, TrireidError
from trireid.models.build import check_model
from trireid.train.device import resolve_device, resolve_precision
from trireid.train.inputs import check_blinding, scan_index
from trireid.train.trackers import check_trackers


def check_runs(configs: Mapping[str, Config]) -> None:
    """Refuse runs that would fail at their start: device, model, start weights that are a file, data, batches.

    Args:
        configs: by the name that a message uses.

    Raises:
        ConfigError: One line per fault, with the names of the runs that have it unless all do.
    """
    faults: dict[str, list[str]] = {}
    for name, config in configs.items():
        try:
            check_run(config)
        except TrireidError as error:
            faults.setdefault(str(error), []).append(name)
    if faults:
        lines = [text if len(names) == len(configs) else f"{_listed(names)}: {text}" for text, names in faults.items()]
        raise ConfigError("\n".join(lines))


def check_run(config: Config) -> None:
    """Refuse a run that would fail at its start; see `check_runs`.

    Raises:
        TrireidError: The error that the run would raise.
    """
    data, train = config.data, config.train
    check_trackers(train.trackers)
    check_blinding(config)
    device = resolve_device(train.device)
    resolve_precision(train.precision, device)
    check_model(config.model, image_size=data.image_size)
    # With data.skip_bad the run decodes every image to leave the faulty ones out: that is not done here.
    index = read_index(data.format, data.root, exclude=data.exclude) if data.skip_bad else scan_index(config)
    records, _ = hold_out(index.train, data.val_ids, seed=train.seed, exclude=index.protocol.exclude)
    if data.augmentation.dihedral_identities:
        records = expand_orientations(records)
    train_loader(
        records,
        pixels=FilePixels(records, data.image_size, "bilinear"),
        label_map=LabelMap.from_records(records),
        batch_size=data.batch_size,
        num_instances=data.num_instances,
        sampler=data.sampler,
        seed=train.seed,
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
