"""Where a run computes and in which precision, seeds, and what stays the same between two runs."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, set_seed

from trireid.errors import ConfigError
from trireid.models.low_precision import check_float8
from trireid.names import DeviceName, InferencePrecision, Precision

_AUTOCAST: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,  # of all that is not in 8 bits
}


def resolve_device(name: str) -> torch.device:
    """The device of `train.device`: `cpu`, `cuda`, or `auto` = CUDA where there is one.

    Raises:
        ConfigError: CUDA is requested and not available, or the name is not known.
    """
    if name not in get_args(DeviceName):
        raise ConfigError(f"train.device is {name!r}: allowed are auto, cpu and cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("train.device is cuda, but torch sees no CUDA device: set train.device=cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def resolve_precision(name: str, device: torch.device) -> Precision:
    """The precision of `train.precision`; `auto` is bf16 on a CUDA device that has it, else fp32.

    Raises:
        ConfigError: The device cannot compute in it, or the name is not known.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise ConfigError("train.precision fp16 needs a CUDA device: set train.precision=fp32, bf16 or auto")
    precisions: tuple[Precision, ...] = get_args(Precision)
    for precision in precisions:
        if name == precision:
            return precision
    raise ConfigError(f"train.precision is {name!r}: allowed are auto, {', '.join(precisions)}")


def resolve_inference_precision(name: str, device: torch.device) -> InferencePrecision:
    """The precision of a test, an embedding or a benchmark: one of `resolve_precision`, or `fp8`.

    Raises:
        ConfigError: The device cannot compute in it, or the name is not known.
        InputError: It is `fp8`, and the device does not multiply e4m3.
    """
    if name == "fp8":
        check_float8(device)
        return "fp8"
    if name != "auto" and name not in get_args(Precision):
        raise ConfigError(f"precision is {name!r}: allowed are auto, {', '.join(_AUTOCAST)}")
    return resolve_precision(name, device)


def autocast_dtype(precision: InferencePrecision) -> torch.dtype | None:
    """The type that matrix products are computed in; None: that of the model."""
    return _AUTOCAST[precision]


def make_accelerator(*, device: torch.device, precision: Precision) -> Accelerator:
    """The accelerator of one run: this process alone, or one of several that a launcher started."""
    if AcceleratorState._shared_state and PartialState().num_processes == 1:
        # accelerate keeps the settings of the first run for the whole life of the process, and refuses others.
        AcceleratorState._reset_state(reset_partial_state=True)
    mixed = "no" if precision == "fp32" else precision
    # Batches come in page-locked memory, so that copies to the device need not be waited for.
    # Of several processes each takes its part of every batch, instead of every n-th batch.
    loading = DataLoaderConfiguration(split_batches=True, non_blocking=True)
    # Running statistics are those of the whole batch in every process: to send them at each step would only take time.
    wrapping = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision=mixed, dataloader_config=loading, kwargs_handlers=[wrapping]
    )
    if accelerator.num_processes > 1:
        # A process that ends with its group open may be aborted by the threads of the group ("terminate called").
        atexit.register(_leave_group)
    return accelerator


def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def seed_epoch(seed: int, epoch: int, *, process: int = 0) -> None:
    """Seed the generators of Python, numpy and torch for one epoch of one process.

    Every epoch starts from its own seed, so that what happens between epochs (an evaluation, a resume) does not
    change what follows; epoch 0 is the making of the model, the same on all processes.
    """
    words = np.random.SeedSequence([seed % 2**32, epoch, process]).generate_state(1)
    set_seed(int(words[0]))


@contextmanager
def deterministic_algorithms(device: torch.device) -> Iterator[None]:
    """On the CPU, let torch use only operators that give the same result every time; undone at the end."""
    before = torch.are_deterministic_algorithms_enabled()
    fill_before = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True)
            # It only serves to find reads of memory that nobody wrote, and costs time at every allocation.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill_before  # type: ignore[attr-defined]
