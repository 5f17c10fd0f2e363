"""Reads the file names of a configuration's data set."""

from __future__ import annotations

import logging

from trireid.config.schema import Config
from trireid.data.readers import scan
from trireid.data.records import DatasetIndex
from trireid.errors import ConfigError
from trireid.train.progress import progress_bar

_log = logging.getLogger(__name__)

MAX_LISTED_FAULTS = 20


def check_root(config: Config) -> None:
    """Refuse a data set that does not exist, before anything that takes time; the error is that of its reader.

    Raises:
        DataError: The folder or file does not exist.
    """
    if not config.data.root.exists():
        scan_index(config)


def check_blinding(config: Config) -> None:
    """Refuse blinding in training with one modality, which always keeps its sight.

    Raises:
        ConfigError: Blinding would change nothing.
    """
    used, blinding = config.data.modalities, config.data.augmentation.blinding
    if blinding > 0 and len(used) < 2:
        raise ConfigError(
            f"data.augmentation.blinding={blinding:g} has no effect with one modality (data.modalities: {used[0]}), "
            "since an item keeps its sight in one at least: use 0, or more modalities"
        )


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
