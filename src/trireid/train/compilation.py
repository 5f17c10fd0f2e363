"""Compiles the blocks of a model before its first step, or leaves it plain where that fails."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from trireid.config.schema import Config
from trireid.errors import printable
from trireid.models.compiling import (
    FAILURES,
    compiler_obstacle,
    damage_counted,
    forget_compiled,
    room_to_compile,
    start_compile_workers,
    temporary_cache,
    use_compiler_cache,
)
from trireid.models.reid import ReIDModel
from trireid.models.speed_choice import Speed, inference_speed, training_speed
from trireid.names import Precision
from trireid.train.inputs import TrainingInputs
from trireid.types import NUM_MODALITIES

_log = logging.getLogger(__name__)


def choose_speed(
    config: Config, accelerator: Accelerator, *, precision: Precision, inputs: TrainingInputs, epochs: int
) -> Speed:
    """How a run is trained, by settings, device and the epochs that are left; logged. All processes must call it.

    What will compile kernels for a GPU is started, and becomes ready while the model is made.
    """
    settings, device = config.train, accelerator.device.type
    speed = training_speed(
        compiled=settings.compile,
        recorded=settings.cuda_graph,
        device=device,
        num_processes=accelerator.num_processes,
        precision=precision,
        complete=inputs.complete and settings.modality_dropout == 0,
        steps_per_epoch=len(inputs.loader),
        epochs=epochs,
        obstacle=_common_obstacle(device),
    )
    return _announced(speed, device)


def choose_test_speed(config: Config, accelerator: Accelerator, *, num_items: int) -> Speed:
    """How a test is run, by its settings, its device and the number of items; logged. All processes must call it."""
    device = accelerator.device.type
    speed = inference_speed(
        compiled=config.train.compile,
        recorded=config.train.cuda_graph,
        device=device,
        num_items=max(gather_object([num_items])),  # the same choice in all processes
        obstacle=_common_obstacle(device),
    )
    return _announced(speed, device)


def _announced(speed: Speed, device: str) -> Speed:
    """The choice, logged, and the compiler made ready for it."""
    _log.info("speed: %s", speed)
    if speed.compiled and device == "cuda":
        start_compile_workers()
    return speed


def _common_obstacle(device: str) -> str | None:
    """What keeps any of the processes from compiling, which may run on unlike machines."""
    obstacles: list[str | None] = gather_object([compiler_obstacle(device)])
    return next((each for each in obstacles if each is not None), None)


def compiled_if_possible(
    model: ReIDModel, speed: Speed, *, accelerator: Accelerator, sizes: Mapping[bool, int]
) -> Speed:
    """Compile the blocks of a model if that was chosen, and try them on zeros as training and evaluations run them.

    What cannot be compiled fails here, before a step that could be lost; the model then stays plain, with a warning.

    Args:
        model: on its device, not wrapped. Weights, statistics and random numbers stay as they are.
        speed: what was chosen.
        accelerator: gives the precision, and the other processes: all compile, or all stay plain.
        sizes: of batches in training (True) and in evaluations (False), for which kernels are chosen; both as needed.

    Returns:
        What was chosen, without compilation where that failed.
    """
    if not speed.compiled:
        return speed
    start, folder = perf_counter(), use_compiler_cache()
    fault = _compile(model, accelerator, sizes)
    if fault is not None and _may_be_at_fault(folder):
        with_cache, fault = fault, _compile(model, accelerator, sizes, folder=temporary_cache())
        if fault is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        else:
            _log.warning(
                "the compiler's cache in %s was not usable (%s): empty that folder, or name another one with "
                "TORCHINDUCTOR_CACHE_DIR",
                folder,
                with_cache,
            )
    faults = [each for each in gather_object([fault]) if each is not None]
    if not faults:
        cache = os.environ["TORCHINDUCTOR_CACHE_DIR"]
        _log.info("the blocks were compiled in %.1f s; the compiler's cache is %s", perf_counter() - start, cache)
        return speed
    model.backbone.uncompile()
    _log.warning(
        "the blocks cannot be compiled here (%s): the run goes on without, with the same results; train.compile=false "
        "switches the attempt off",
        faults[0],
    )
    return replace(speed, compiled=False)


def _compile(
    model: ReIDModel, accelerator: Accelerator, sizes: Mapping[bool, int], folder: Path | None = None
) -> str | None:
    """Compile and try the blocks, with another folder of the compiler's cache if given; what failed, or None."""
    if folder is not None:
        model.backbone.uncompile()
        forget_compiled()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    try:
        with room_to_compile(), damage_counted() as damage:
            model.backbone.compile_blocks()
            _try_blocks(model, accelerator, sizes)
    except FAILURES as error:
        model.zero_grad(set_to_none=True)
        first, *others = str(error).strip().splitlines() or [""]
        reason = f"{first} {others[0]}" if first.endswith("raised:") and others else first
        return f"{type(error).__name__}: {printable(reason, limit=200)}"
    if damage.count:
        _log.warning(
            "%d files of the compiler's cache in %s are damaged, and were compiled again: empty that folder",
            damage.count,
            os.environ["TORCHINDUCTOR_CACHE_DIR"],
        )
    return None


def _may_be_at_fault(cache: Path) -> bool:
    """Whether another folder for the compiler's cache could help: this one holds files, or cannot be written."""
    try:
        return any(cache.iterdir()) or not os.access(cache, os.W_OK)
    except OSError:  # it cannot be made, or not be read
        return True


def _try_blocks(model: ReIDModel, accelerator: Accelerator, sizes: Mapping[bool, int]) -> None:
    """Run the backbone on zeros as training (True) and evaluations do, each with its batch size: all is compiled."""
    device, was_training = accelerator.device, model.training
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for training, size in sizes.items():
            model.train(training)
            with torch.inference_mode(not training), accelerator.autocast():
                images = torch.zeros(size, NUM_MODALITIES, 3, *model.backbone.image_size, device=device)
                camera = torch.zeros(size, dtype=torch.int64, device=device)
                tokens = model.backbone(images, camera=camera)
            if training:
                parts = [tokens.cls, tokens.patches, *([] if tokens.fused is None else [tokens.fused])]
                total = torch.stack([part.float().sum() for part in (*parts, *tokens.auxiliary.values())]).sum()
                if total.requires_grad:  # not where all of the ViT is kept as it is
                    total.backward()
                model.zero_grad(set_to_none=True)
    model.train(was_training)
