"""The mean of the training features of a model, which `evaluate.centring=train` subtracts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from trireid.config.schema import Config
from trireid.data.records import DatasetIndex
from trireid.data.transforms import Normalise
from trireid.errors import InputError, TrireidError, printable
from trireid.evaluation.centring import block_means
from trireid.evaluation.features import JOINED_FEATURES, FeatureSet, extract_features
from trireid.train.checkpoint import Checkpoint, build_for, checkpoint_writer, config_here, load_checkpoint
from trireid.train.device import autocast_dtype, resolve_device, resolve_precision
from trireid.train.gathering import gather_features
from trireid.train.inputs import count_items, open_plain, scan_index
from trireid.train.progress import progress_bar
from trireid.types import Batch, filled_blocks

_log = logging.getLogger(__name__)

CENTRED = "centred"
"""Ends the note of a checkpoint that `centre_checkpoint` wrote."""


def training_means(
    model: nn.Module,
    loader: DataLoader[Batch],
    *,
    transform: Normalise,
    device: torch.device,
    dtype: torch.dtype | None,
    num_shares: int = 1,
    progress: bool = False,
) -> dict[str, Tensor]:
    """The mean of `global` and `head` over training items, of each block over the items that have it.

    Where several processes share the items, all of them must call this, and all get the result.

    Args:
        model: on `device`, without a centre.
        loader: the items, each once.
        transform: makes images of pixels.
        device, dtype: where the model runs, and its autocast type.
        num_shares: processes that the batches were dealt to.
        progress: show a bar.

    Returns:
        `(D,)` float32 on the CPU by name.
    """
    with progress_bar("training features", enabled=progress, total=count_items(loader), transient=True) as bar:
        extract: Callable[[], FeatureSet] = partial(
            extract_features,
            model,
            loader,
            device=device,
            dtype=dtype,
            transform=transform,
            progress=bar.advance,
        )
        if num_shares == 1:
            return _means(extract())
        found = gather_features(lambda: extract() if count_items(loader) else None, device=device)
    means: list[dict[str, Tensor]] = [{} if found is None else _means(found)]
    distributed.broadcast_object_list(means, src=0)
    return means[0]


def _means(features: FeatureSet) -> dict[str, Tensor]:
    everything = torch.zeros(len(features), dtype=torch.int64)
    return {
        name: block_means(
            features.features[name], filled_blocks(features.blocks[name], features.present), everything, 1
        )[0][0].float()
        for name in JOINED_FEATURES
        if name in features.features
    }


def with_means(
    checkpoint: Checkpoint,
    config: Config,
    index: DatasetIndex,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    share: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Checkpoint:
    """The checkpoint with the mean of its training features, found from the training images where it has none.

    Args:
        checkpoint: of a run.
        config: where the data are, with the ranges of values of the checkpoint.
        index: the data set.
        device, dtype: where the model runs, and its autocast type.
        share: (number of this process, number of processes).
        progress: show bars.

    Raises:
        DataError: something is wrong with the training images.
    """
    if checkpoint.centre:
        return checkpoint
    _log.info("the mean of the training features is not in %s: it is found from the training images", checkpoint.path)
    plain = uncentred(config)
    loader = open_plain(plain, index, checkpoint.label_map, device=device, share=share, progress=progress)
    means = training_means(
        build_for(checkpoint, plain).to(device),
        loader,
        transform=Normalise(config.data.mean, config.data.std),
        device=device,
        dtype=dtype,
        num_shares=share[1],
        progress=progress,
    )
    return replace(checkpoint, centre=means)


def centre_checkpoint(path: Path, out: Path, *, config: Config | None = None, progress: bool = True) -> Checkpoint:
    """Write a copy of a checkpoint whose features are centred wherever they are used.

    Args:
        path: a checkpoint, or a run folder, whose last checkpoint is used.
        out: file to write, `.safetensors`.
        config: as of `evaluate_checkpoint`: where the training images are, if the checkpoint has no mean.
        progress: show bars.

    Raises:
        CheckpointError: the checkpoint is damaged.
        DataError: it has no mean, and something is wrong with the training images.
        InputError: `out` exists and is no centred checkpoint, such as one that a run wrote.
        RunError: the file cannot be written.
    """
    replaced = out.exists()
    _check_replaceable(out)
    checkpoint = load_checkpoint(path)
    here = config_here(checkpoint) if config is None else config
    if not checkpoint.centre:
        device = resolve_device(here.train.device)
        dtype = autocast_dtype(resolve_precision(here.train.precision, device))
        index = scan_index(here, progress=progress)
        checkpoint = with_means(checkpoint, here, index, device=device, dtype=dtype, progress=progress)
    evaluate = checkpoint.config.evaluate.model_copy(update={"centring": "train"})
    centred = replace(checkpoint, config=checkpoint.config.model_copy(update={"evaluate": evaluate}))
    model = build_for(centred, centred.config)
    checkpoint_writer(
        out,
        model,
        config=centred.config,
        label_map=centred.label_map,
        epoch=centred.epoch,
        note=centred.note if centred.note.endswith(CENTRED) else f"{centred.note}, {CENTRED}".lstrip(", "),
        figures=centred.figures,
        centre=centred.centre,
    )()
    if replaced:
        _log.warning("replaced: %s", printable(str(out)))
    return replace(centred, path=out)


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    try:
        ours = load_checkpoint(out).note.endswith(CENTRED)
    except TrireidError:
        ours = False
    if not ours:
        raise InputError(f"{out} exists and is no centred checkpoint: choose another file, or remove it")


def uncentred(config: Config) -> Config:
    """The configuration with `evaluate.centring=none`."""
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"centring": "none"})})
