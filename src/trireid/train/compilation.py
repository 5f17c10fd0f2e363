"""Compiles the blocks of a model before its first step, or leaves it plain where that fails."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from trireid.config.schema import Config
from trireid.errors import printable
from trireid.models.compiling import FAILURES, compiler_obstacle, room_to_compile, use_compiler_cache
from trireid.models.reid import ReIDModel
from trireid.models.speed_choice import Speed, inference_speed, training_speed
from trireid.names import Precision
from trireid.train.inputs import TrainingInputs
from trireid.types import NUM_MODALITIES

_log = logging.getLogger(__name__)


def choose_speed(
    config: Config, accelerator: Accelerator, *, precision: Precision, inputs: TrainingInputs, epochs: int
) -> Speed:
    """How a run is trained, by its settings, its device and the epochs that are left; logged."""
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
        obstacle=compiler_obstacle(device),
    )
    _log.info("speed: %s", speed)
    return speed


def choose_test_speed(config: Config, accelerator: Accelerator, *, num_items: int) -> Speed:
    """How a test is run, by its settings, its device and the number of items of this process; logged."""
    device = accelerator.device.type
    speed = inference_speed(
        compiled=config.train.compile,
        recorded=config.train.cuda_graph,
        device=device,
        num_items=num_items,
        obstacle=compiler_obstacle(device),
    )
    _log.info("speed: %s", speed)
    return speed


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
    start, fault = perf_counter(), None
    folder = use_compiler_cache()
    try:
        with room_to_compile():
            model.backbone.compile_blocks()
            _try_blocks(model, accelerator, sizes)
    except FAILURES as error:
        fault = f"{type(error).__name__}: {printable(str(error).strip().split(chr(10))[0], limit=200)}"
    faults = [each for each in gather_object([fault]) if each is not None]
    if not faults:
        where = "torch's default folder" if folder is None else str(folder)
        _log.info("the blocks were compiled in %.1f s; what was compiled is kept in %s", perf_counter() - start, where)
        return speed
    model.backbone.uncompile()
    model.zero_grad(set_to_none=True)
    _log.warning(
        "the blocks cannot be compiled here (%s): the run goes on without, with the same results; train.compile=false "
        "switches the attempt off%s",
        faults[0],
        "" if folder is None else f", and emptying {folder} mends a damaged cache",
    )
    return replace(speed, compiled=False)


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
                total.backward()
                model.zero_grad(set_to_none=True)
    model.train(was_training)
