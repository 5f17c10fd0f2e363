"""Weights & Biases and MLflow beside the TensorBoard events of a run, through accelerate's tracker classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trireid.errors import RunError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

_log = logging.getLogger(__name__)

PROJECT = "trireid"


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of all trackers are installed, before anything that takes time.

    Raises:
        RunError: A package is missing; the message names the extra that installs it.
    """
    for name in names:
        if find_spec(name) is None:
            raise RunError(
                f"train.trackers names {name}, which is not installed: pip install 'trireid[{name}]', or remove it"
            )


class RemoteTrackers:
    """Trackers whose errors do not stop a run: one that fails is no longer used, with a warning.

    Args:
        names: of `wandb` and `mlflow`.
        folder: run folder; its name is the run's name, and wandb keeps its files in it.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self._trackers: dict[str, GeneralTracker] = {}
        for name in names:
            self._try(name, partial(self._start, name, folder))

    def log(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Send the numbers of an epoch."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, partial(tracker.log, dict(values), step=epoch))

    def show(self, images: Mapping[str, NDArray[np.uint8]], *, epoch: int) -> None:
        """Send pictures `(H, W, 3)` by tag."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, partial(_show, tracker, images, epoch))

    def close(self) -> None:
        """End the runs."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.finish)

    def _start(self, name: str, folder: Path) -> None:
        self._trackers[name] = _open(name, folder)

    def _try(self, name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except _errors_of(name) as error:
            self._trackers.pop(name, None)
            _log.warning("%s failed and is not used for the rest of this run: %s", name, error)


def _errors_of(name: str) -> tuple[type[Exception], ...]:
    """Errors that a tracker may raise: of network, disk and values, and those of its own package."""
    common = (OSError, RuntimeError, ValueError, TypeError, ImportError)
    module, error = {"wandb": ("wandb.errors", "Error"), "mlflow": ("mlflow.exceptions", "MlflowException")}[name]
    try:
        return (*common, getattr(import_module(module), error))
    except ImportError:
        return common


def _open(name: str, folder: Path) -> Any:
    from accelerate.tracking import MLflowTracker, WandBTracker

    tracker: Any
    if name == "wandb":
        tracker = WandBTracker(PROJECT, name=folder.name, dir=str(folder))
    else:
        tracker = MLflowTracker(PROJECT, run_name=folder.name, logging_dir=None)
    if hasattr(tracker, "start"):  # older ones start when they are made
        tracker.start()
    return tracker


def _show(tracker: Any, images: Mapping[str, NDArray[np.uint8]], epoch: int) -> None:
    if hasattr(tracker, "log_images"):
        tracker.log_images({tag: [image] for tag, image in images.items()}, step=epoch)
        return
    import mlflow  # its tracker accepts only figures and files

    for tag, image in images.items():
        mlflow.log_image(image, artifact_file=f"{tag}/{epoch:04d}.png")
