"""One pass over the training set."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trireid.config.schema import TrainConfig
from trireid.data.dropping import drop_modalities
from trireid.errors import RunError
from trireid.losses import reid_loss
from trireid.train.gathering import gather_output
from trireid.train.gradient_mean import GradientMean
from trireid.train.progress import Bar
from trireid.train.run_files import EpochEntry
from trireid.types import Batch, ReIDOutput


class LossLog:
    """Loss terms of an epoch, kept on the device until they are read, so that no step waits for the device.

    Args:
        epoch: for messages.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.num_steps = 0
        self._pending: list[dict[str, Tensor]] = []
        self._sums: dict[str, float] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add the terms of the next step."""
        self._pending.append({name: value.detach() for name, value in terms.items()})

    def read(self) -> None:
        """Copy the terms of the steps since the last call to the host: the only place that waits for the device.

        Raises:
            RunError: A loss of these steps is not finite; the message names the first such step and its terms.
        """
        if not self._pending:
            return
        names = list(self._pending[0])
        table = torch.stack([torch.stack([step[name].float() for name in names]) for step in self._pending])
        for values in table.tolist():
            self.num_steps += 1
            self._check(dict(zip(names, values, strict=True)))
            for name, value in zip(names, values, strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value
        self._pending.clear()

    def means(self) -> dict[str, float]:
        """Mean of each term over the steps that were read."""
        return {name: value / self.num_steps for name, value in self._sums.items()}

    def _check(self, terms: dict[str, float]) -> None:
        if all(math.isfinite(value) for value in terms.values()):
            return
        shown = ", ".join(f"{name} {value:g}" for name, value in terms.items())
        raise RunError(
            f"the loss is not finite in epoch {self.epoch}, step {self.num_steps} ({shown}): lower train.lr and "
            "train.backbone_lr, set train.clip_grad_norm=1, or train with train.precision=fp32; earlier "
            "checkpoints are kept"
        )


Terms = dict[str, Tensor]


def make_gradients(
    batch: Batch,
    *,
    model: nn.Module,
    accelerator: Accelerator,
    settings: TrainConfig,
    transform: Callable[[Tensor, Tensor, Tensor], Tensor],
    complete: bool = False,
    mean: GradientMean | None = None,
) -> Terms:
    """Augment a batch, run the model, and compute the gradients of the loss.

    Args:
        batch: on the device.
        model: prepared by the accelerator, in training mode.
        accelerator: gives autocast, backward and the gradient scaler.
        settings: loss weights.
        transform: makes images of (pixels, seed, present) of a batch, on the device.
        complete: every triplet has all modalities and keeps them; the model then does not check for missing ones, which
            would wait for the device.
        mean: brings the gradients of several processes together where the prepared model does not; None: it does, or
            there is one process.

    Returns:
        The terms of the loss.
    """
    present = batch.present
    if settings.modality_dropout > 0:
        present = drop_modalities(present, batch.seed, settings.modality_dropout)
    images = transform(batch.images, batch.seed, present)
    run = partial(model, images, present=None if complete else present, camera=batch.camera)
    if accelerator.num_processes == 1:
        output, label = run(), batch.label
    else:  # the loss is of the whole batch, in every process the same
        alone, whole = run(classify=False), accelerator.unwrap_model(model)
        with accelerator.autocast():
            output, label = gather_output(alone, batch.label, model=whole, complete=complete)
    terms = loss_terms(output, label, settings)
    with nullcontext() if mean is None else mean:
        accelerator.backward(terms["total"])
    return terms


def train_epoch(
    model: nn.Module,
    loader: DataLoader[Batch],
    optimizer: Any,
    *,
    gradients: Callable[[Batch], Terms],
    accelerator: Accelerator,
    settings: TrainConfig,
    epoch: int,
    bar: Bar,
) -> EpochEntry:
    """Train on every batch of an epoch.

    Args:
        model: prepared by the accelerator.
        loader: prepared by the accelerator, its epoch set.
        optimizer: prepared by the accelerator, its rates set.
        gradients: `make_gradients` of this model, or its recording.
        accelerator: clips gradients.
        settings: clipping, and how often to read the loss.
        epoch: its number.
        bar: advanced by one per step.

    Returns:
        Losses, counts and durations of the entry of this epoch.

    Raises:
        RunError: The loss is not finite, or the loader gave no batch.
    """
    model.train()
    log, num_triplets, data_seconds, start = LossLog(epoch), 0, 0.0, perf_counter()
    waiting_since = start
    for step, batch in enumerate(loader, start=1):
        data_seconds += perf_counter() - waiting_since
        terms = gradients(batch)
        if settings.clip_grad_norm > 0:
            accelerator.clip_grad_norm_(model.parameters(), settings.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.add(terms)
        num_triplets += batch.label.shape[0] * accelerator.num_processes
        if step % settings.log_every == 0:
            log.read()
            bar.annotate(f"loss {log.means()['total']:.3f}")
        bar.advance(1)
        waiting_since = perf_counter()
    data_seconds += perf_counter() - waiting_since
    log.read()
    if log.num_steps == 0:
        raise RunError(f"epoch {epoch} has no batch: lower data.batch_size, or train in fewer processes")
    seconds = perf_counter() - start
    bar.annotate(f"loss {log.means()['total']:.3f}, {_pace(num_triplets, seconds, waited=data_seconds)}")
    return {
        "epoch": epoch,
        "loss": log.means(),
        "num_steps": log.num_steps,
        "num_triplets": num_triplets,
        "data_seconds": data_seconds,
        "step_seconds": seconds - data_seconds,
    }


def _pace(num_triplets: int, seconds: float, *, waited: float) -> str:
    """How fast an epoch was, in words."""
    seconds = max(seconds, 1e-9)
    return f"{num_triplets / seconds:,.0f} triplets/s, {waited / seconds:.0%} of the time waiting for data"


def loss_terms(output: ReIDOutput, label: Tensor, settings: TrainConfig) -> dict[str, Tensor]:
    """The losses of one batch under the settings of a run, see `reid_loss`."""
    return reid_loss(
        output,
        label,
        id_weight=settings.id_weight,
        triplet_weight=settings.triplet_weight,
        label_smoothing=settings.label_smoothing,
        margin=settings.triplet_margin,
    )
