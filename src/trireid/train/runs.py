"""The run folder: claiming and locking it, reading and writing its files, and the log of the epochs."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trireid.config.load import dump_config, load_config
from trireid.config.schema import Config
from trireid.errors import RunError
from trireid.files import locked, read_text, remove_leftovers, write_json, write_text, writing
from trireid.train.run_files import (
    BEST_FILE,
    CONFIG_FILE,
    ENVIRONMENT,
    ENVIRONMENT_FILE,
    EPOCH_ENTRY,
    EPOCHS_FILE,
    LAST_FILE,
    METRICS_FILE,
    OTHER_OUTPUT,
    RUN_METRICS,
    STATE_FILE,
    TENSORBOARD_FOLDER,
    EpochEntry,
    RunMetrics,
    leaves,
)
from trireid.train.trackers import RemoteTrackers
from trireid.typed_json import checked, parse_object, read_object

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)

RUN_FILES = (CONFIG_FILE, EPOCHS_FILE, METRICS_FILE, LAST_FILE, BEST_FILE, STATE_FILE)
"""A folder that holds one of these holds a run."""

FREE_TO_CHANGE = (
    "output",
    "data.root",
    "data.cache",
    "data.cache_folder",
    "data.workers",
    "train.log_every",
    "train.checkpoint_every",
    "train.maps_every",
    "train.trackers",
    "train.compile",
    "train.cuda_graph",
    "train.recompute_blocks",
)
"""Settings that may differ when a run is resumed, because they do not change what is learnt."""

OF_A_MACHINE = ("data.root", "data.cache", "data.cache_folder", "data.workers")
"""Settings that may differ between the processes of a run, which may be on several machines."""


def claim_run_folder(folder: Path, config: Config, *, resume: bool) -> None:
    """Check that a run may write to its folder, before anything that takes time.

    Args:
        folder: made where it does not exist.
        config: resolved configuration of the run.
        resume: the folder must hold a run of the same configuration; else it must hold none.

    Raises:
        RunError: The folder already holds a run, holds no run or another run to resume, or cannot be written.
    """
    found = [name for name in RUN_FILES if (folder / name).exists()]
    if found and not resume:
        state = "a finished run" if METRICS_FILE in found else "an unfinished run"
        raise RunError(
            f"{folder} already holds {state} ({found[0]}): continue it with --resume, choose another folder with "
            "output=..., or delete it yourself"
        )
    if resume and not found:
        raise RunError(f"{folder} holds no run to resume: leave out --resume, or give its folder with output=...")
    if resume:
        _check_same_run(folder, config)
    with writing(folder, advice=OTHER_OUTPUT):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as probe:
            probe.write(b"x" * 4096)
            probe.flush()


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Lock a claimed folder against other runs while the block runs, and delete half-written files of a killed run.

    Raises:
        RunError: Another run is writing to it.
    """
    taken = f"another run is writing to {folder}: wait for its end, or choose another folder with output=..."
    with locked(folder, taken=taken) as alone:
        for path in (folder / name for name in RUN_FILES if alone):
            remove_leftovers(path)
        yield


def require_space(folder: Path, num_bytes: int) -> None:
    """Check that the disk has space for the checkpoints of a run.

    Args:
        folder: of the run; the weights and states that a resumed run has there already take no further space.
        num_bytes: of all its weights and states.

    Raises:
        RunError: The free space is less than what will be written.
    """
    free = shutil.disk_usage(folder).free
    files = (folder / name for name in (LAST_FILE, BEST_FILE, STATE_FILE))
    num_bytes -= sum(file.stat().st_size for file in files if file.exists())
    if free < num_bytes:
        raise RunError(
            f"the disk of {folder} has {free / 1e6:.1f} MB free, this run needs up to {num_bytes / 1e6:.1f} MB for "
            f"its checkpoints: free some space or {OTHER_OUTPUT}"
        )


def write_start(folder: Path, config: Config, environment: Mapping[str, Any]) -> None:
    """Write the resolved configuration and the environment of a fresh run; a resume adds its own environment.

    Raises:
        RunError: The folder cannot be written.
    """
    if not (folder / CONFIG_FILE).exists():
        write_text(folder / CONFIG_FILE, dump_config(config), advice=OTHER_OUTPUT)
    path = folder / ENVIRONMENT_FILE
    if path.exists():
        with _damage_reported(path, "delete it and resume the run"):
            first = checked(ENVIRONMENT, read_object(path))
        environment = {**first, "resumed": [*first.get("resumed", []), dict(environment)]}
    write_json(path, dict(environment), advice=OTHER_OUTPUT)


def write_metrics(folder: Path, metrics: RunMetrics) -> None:
    """Write the metrics of a run, which marks it as finished.

    Raises:
        RunError: The folder cannot be written.
    """
    write_json(folder / METRICS_FILE, metrics, advice=OTHER_OUTPUT)


def is_finished(folder: Path) -> bool:
    """Whether the run of a folder has written its metrics."""
    return (folder / METRICS_FILE).exists()


def read_metrics(folder: Path) -> RunMetrics | None:
    """The metrics of a finished run; None where it is not finished.

    Raises:
        RunError: The file is damaged.
    """
    path = folder / METRICS_FILE
    if not is_finished(folder):
        return None
    with _damage_reported(path, "delete it and resume the run to make it again"):
        metrics = checked(RUN_METRICS, read_object(path))
        if not metrics.get("feature"):
            raise ValueError("it has no metrics of any feature")
    return metrics


def read_epochs(folder: Path) -> list[EpochEntry]:
    """The entries of `metrics.jsonl`, one per epoch; an incomplete last line is ignored.

    Raises:
        RunError: A line is damaged.
    """
    path = folder / EPOCHS_FILE
    if not path.exists():
        return []
    entries = []
    with _damage_reported(path, "delete the damaged line, or train again"):
        for number, line in enumerate(read_text(path).split("\n")[:-1], start=1):
            try:
                entries.append(checked(EPOCH_ENTRY, parse_object(line)))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return entries


class EpochLog:
    """Writes one JSON line and one set of TensorBoard scalars per epoch, at its end.

    Args:
        folder: run folder.
        last_epoch: entries after this epoch come from a run that stopped before it saved its state; they are deleted,
            since these epochs are trained again.
        trackers: `train.trackers`.
    """

    def __init__(self, folder: Path, *, last_epoch: int = 0, trackers: Sequence[str] = ("tensorboard",)) -> None:
        kept = [entry for entry in read_epochs(folder) if entry["epoch"] <= last_epoch]
        lines = "".join(json.dumps(entry) + "\n" for entry in kept)
        write_text(folder / EPOCHS_FILE, lines, advice=OTHER_OUTPUT)
        self._folder = folder
        self._board: SummaryWriter | None = None
        if "tensorboard" in trackers:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

            with writing(folder, advice=OTHER_OUTPUT):
                self._board = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=last_epoch + 1)
        self._remote = RemoteTrackers([name for name in trackers if name != "tensorboard"], folder)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add the entry of one epoch; its nested numbers become TensorBoard scalars such as `loss/total`.

        Raises:
            RunError: The folder cannot be written.
        """
        with (
            writing(self._folder, advice=OTHER_OUTPUT),
            (self._folder / EPOCHS_FILE).open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(entry, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        values = {name: value for name, value in flatten_numbers(entry) if name != "epoch"}
        if self._board is not None:
            with writing(self._folder, advice=OTHER_OUTPUT):
                for name, value in values.items():
                    self._board.add_scalar(name, value, entry["epoch"])
                self._board.flush()
        self._remote.log(values, epoch=entry["epoch"])

    def show(self, images: Mapping[str, NDArray[np.uint8]], *, epoch: int) -> None:
        """Add pictures `(H, W, 3)` of an epoch, by tag.

        Raises:
            RunError: The folder cannot be written.
        """
        if self._board is not None:
            with writing(self._folder, advice=OTHER_OUTPUT):
                for tag, image in images.items():
                    self._board.add_image(tag, image, epoch, dataformats="HWC")
        self._remote.show(images, epoch=epoch)

    def close(self) -> None:
        """Close the TensorBoard events and end the runs of other trackers.

        Raises:
            RunError: The folder cannot be written.
        """
        self._remote.close()
        if self._board is not None:
            with writing(self._folder, advice=OTHER_OUTPUT):
                self._board.close()


def flatten_numbers(tree: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers of a nested mapping, by path: `metrics/test/joint/mAP`."""
    for path, value in leaves(tree, separator="/"):
        if isinstance(value, int | float):
            yield path, float(value)


@contextmanager
def _damage_reported(path: Path, advice: str) -> Iterator[None]:
    """Report a damaged file of a run in one line; `advice` says what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): {advice}") from error


def _check_same_run(folder: Path, config: Config) -> None:
    """Refuse to resume a run with settings that change what is learnt."""
    path = folder / CONFIG_FILE
    if not path.exists():
        raise RunError(f"{folder} has no {CONFIG_FILE}, so its run cannot be resumed: choose another folder")
    before, now = dict(setting_values(load_config(path))), dict(setting_values(config))
    differing = [name for name in now if now[name] != before.get(name) and name not in FREE_TO_CHANGE]
    if differing:
        shown = ", ".join(f"{name} was {before.get(name)!r}, now {now[name]!r}" for name in differing[:3])
        raise RunError(
            f"the run in {folder} has other settings ({shown}): resume it with its own, --config {path}, or start "
            "another run with output=..."
        )


def setting_values(config: Config) -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted path, as plain data."""
    yield from leaves(config.model_dump(mode="json"))
