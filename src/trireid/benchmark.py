"""What a model costs: parameters, multiply-adds, latency, throughput and memory, several models side by side."""

from __future__ import annotations

import gc
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trireid.errors import ConfigError, InputError
from trireid.losses import reid_loss
from trireid.models.reid import ReIDModel
from trireid.train.recording import RecordedGradients
from trireid.types import NUM_MODALITIES, Batch, ReIDOutput

Step = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """What one candidate costs in one mode.

    Attributes:
        name: of the candidate; mode: `inference` or `training`; batch_size: triplets a batch.
        parameters: number; gmac: 1e9 multiply-adds a triplet of the forward pass (both None for a foreign callable,
            which is only timed).
        latency: median seconds a batch; latency_low, latency_high: first and third quartile.
        throughput: triplets a second at the median.
        peak_memory: bytes of device memory at the highest point of a batch while this candidate alone is on the
            device (weights, optimiser state, images, activations), None on the CPU.
        repeats: number of timed batches.
    """

    name: str
    mode: str
    batch_size: int
    parameters: int | None
    gmac: float | None
    latency: float
    latency_low: float
    latency_high: float
    throughput: float
    peak_memory: int | None
    repeats: int


def count_macs(call: Callable[[], Any]) -> int:
    """Multiply-adds of everything that `call` runs, by torch's FLOP counter (2 FLOPs are 1 multiply-add).

    Fused attention runs in its plain form while it is counted: the counter has no formula for the fused operator of
    the CPU and would leave attention out without a word.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2


def model_macs(model: nn.Module, *, image_size: tuple[int, int], device: torch.device | str = "cpu") -> int:
    """Multiply-adds of one triplet in evaluation, `model(images)` with images `(1, M, 3, H, W)`."""
    images = torch.zeros(1, NUM_MODALITIES, 3, *image_size, device=device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return count_macs(lambda: model(images))
    finally:
        model.train(was_training)


def inference_step(model: Callable[[Tensor], object], images: Tensor, *, dtype: torch.dtype | None) -> Step:
    """One forward pass without gradient, in autocast where a type is given (a `RecordedModel` brings its own)."""

    def step() -> object:
        with torch.inference_mode(), torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            return model(images)

    return step


def training_step(
    model: ReIDModel, images: Tensor, *, num_classes: int, dtype: torch.dtype | None, recorded: bool = False
) -> Step:
    """One optimiser step: forward, the losses of the recipe, backward, Adam.

    Args:
        model: in training mode afterwards.
        images: `(B, M, 3, H, W)`.
        num_classes: C; four items share a label.
        dtype: autocast type or None.
        recorded: replay forward, loss and backward as a CUDA graph (a `ReIDModel` on a CUDA device).
    """
    numbers = torch.arange(len(images), device=images.device)
    present = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
    batch = Batch(images, present, label=numbers // 4 % num_classes, camera=numbers, item=numbers, seed=numbers)
    fused = images.device.type == "cuda"
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=fused)

    def gradients(batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            output: ReIDOutput = model(batch.images)
        terms = reid_loss(output, batch.label)
        terms["total"].backward()
        return terms

    run = RecordedGradients(gradients, model) if recorded else gradients

    def step() -> object:
        model.train()
        terms = run(batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return terms["total"].detach()

    return step


def time_steps(
    steps: Mapping[str, Step],
    *,
    device: torch.device,
    repeats: int,
    warmup: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each step, taken in turn (A B C A B C ...), so that a machine that drifts is fair to all.

    Raises:
        InputError: fewer than one repeat or a negative warm-up.
    """
    if repeats < 1 or warmup < 0:
        raise InputError(f"repeats is {repeats} and warm-up {warmup}: at least 1 and 0 are needed")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(warmup + repeats):
        for name, step in steps.items():
            _wait(device)
            start = perf_counter()
            step()
            _wait(device)
            if round_number >= warmup:
                seconds[name].append(perf_counter() - start)
        if progress is not None:
            progress(round_number + 1, warmup + repeats)
    return seconds


def peak_memory(make: Callable[[], Step], *, device: torch.device) -> int | None:
    """Bytes of device memory at the highest point of one step; None on the CPU, where nothing is made.

    Args:
        make: puts everything that the step needs on the device and returns the step, so that what is not measured need
            not be there; it is let go of afterwards.
        device: where.
    """
    if device.type != "cuda":
        return None
    _release()
    step = make()
    step()  # the optimiser's state is there, and a compiled model compiled, from the second step on
    _release()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    _wait(device)
    peak = int(torch.cuda.max_memory_allocated(device))
    del step
    _release()
    return peak


@contextmanager
def naming_out_of_memory(name: str, mode: str, *, batch_size: int) -> Iterator[None]:
    """Say which candidate ran out of device memory.

    Raises:
        ConfigError: in place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"{name} ran out of device memory in {mode} with {batch_size} triplets a batch: give a smaller "
            "--batch-size, or compare fewer models in one call (all are on the device while they are timed)"
        ) from None


def summarise(
    name: str,
    mode: str,
    seconds: Sequence[float],
    *,
    batch_size: int,
    parameters: int | None,
    macs: int | None,
    memory: int | None,
) -> Cost:
    """A `Cost` out of timed batches."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    return Cost(
        name=name,
        mode=mode,
        batch_size=batch_size,
        parameters=parameters,
        gmac=None if macs is None else macs / 1e9,
        latency=middle,
        latency_low=low,
        latency_high=high,
        throughput=batch_size / middle,
        peak_memory=memory,
        repeats=len(seconds),
    )


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on: device, cores, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def matrix_rate(device: torch.device, *, dtype: torch.dtype, size: int = 8192, repeats: int = 10) -> float | None:
    """Floating-point operations a second of a square matrix product on a CUDA device: what a model can be held against.

    Args:
        device: None is returned for the CPU.
        dtype: of the matrices, which hold random numbers (a card computes zeros faster).
        size: rows and columns; repeats: timed products, of which the median counts, after three others.
    """
    if device.type != "cuda":
        return None
    one, two = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = time_steps({"product": lambda: one @ two}, device=device, repeats=repeats, warmup=3)["product"]
    return 2 * size**3 / statistics.median(seconds)


def as_rows(costs: Sequence[Cost], *, rate: float | None = None) -> list[dict[str, Any]]:
    """Costs as plain dictionaries, with figures that need more than one of them.

    Args:
        costs: in the order of the rows.
        rate: operations a second of a matrix product, see `matrix_rate`.

    Returns:
        The attributes of each, and `relative_throughput` to the first of the same mode; `tflops`, 1e12 operations a
        second (2 a multiply-add, 3 times as many in training for the gradients of inputs and weights); `matrix_share`
        of `rate` in [0, 1]. The last two are None where they are not known.
    """
    first: dict[str, float] = {}
    rows = []
    for cost in costs:
        base = first.setdefault(cost.mode, cost.throughput)
        passes = 3 if cost.mode == "training" else 1
        tflops = None if cost.gmac is None else 2e-3 * cost.gmac * passes * cost.throughput
        share = None if tflops is None or rate is None else 1e12 * tflops / rate
        relative = cost.throughput / base
        rows.append({**asdict(cost), "relative_throughput": relative, "tflops": tflops, "matrix_share": share})
    return rows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release() -> None:
    """Free what nothing holds any more, and the work space of cuBLAS, which would count for whoever comes after."""
    gc.collect()
    if torch.cuda.is_available():
        torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
