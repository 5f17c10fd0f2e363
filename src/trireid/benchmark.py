"""The cost of models, side by side: parameters, multiply-adds, latency, throughput and memory."""

from __future__ import annotations

import gc
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, TypedDict, cast

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
    """The cost of one model in one mode.

    Attributes:
        name: of the model; mode: `inference` or `training`; batch_size: triplets per batch.
        parameters: their number; gmac: 1e9 multiply-adds per triplet in the forward pass (both None for a user's
            callable, which is only timed).
        latency: median seconds per batch; latency_low, latency_high: first and third quartile.
        throughput: triplets per second at the median latency.
        peak_memory: largest number of bytes of device memory during a batch, with this model alone on the device
            (weights, optimiser state, images, activations), None on the CPU.
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


class CostRow(TypedDict):
    """A `Cost` as a plain dictionary, with the numbers that compare it with others, see `as_rows`."""

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
    relative_throughput: float
    tflops: float | None
    matrix_share: float | None


def count_macs(call: Callable[[], Any]) -> int:
    """Multiply-adds of everything that `call` runs, by torch's FLOP counter (2 FLOPs are 1 multiply-add).

    Fused attention is counted in its plain form, since the counter has no formula for the fused operator of the CPU
    and would silently leave attention out.

    Example:
        >>> count_macs(lambda: torch.zeros(3, 4) @ torch.zeros(4, 5))
        60
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2


def model_macs(model: nn.Module, *, image_size: tuple[int, int], device: torch.device | str = "cpu") -> int:
    """Multiply-adds per triplet in evaluation mode, of `model(images)` with images `(1, M, 3, H, W)`."""
    images = torch.zeros(1, NUM_MODALITIES, 3, *image_size, device=device)
    was_training, trained = model.training, [each for each in model.parameters() if each.requires_grad]
    model.eval()
    model.requires_grad_(False)  # the counter of torch trips over a parameter that a layer is called with (SigLIP)
    try:
        with torch.no_grad():
            return count_macs(lambda: model(images))
    finally:
        model.train(was_training)
        for parameter in trained:
            parameter.requires_grad_(True)


def inference_step(model: Callable[[Tensor], object], images: Tensor, *, dtype: torch.dtype | None) -> Step:
    """A forward pass without gradient, in autocast if a type is given (a `RecordedModel` has its own)."""

    def step() -> object:
        with torch.inference_mode(), torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            return model(images)

    return step


def training_step(
    model: ReIDModel, images: Tensor, *, num_classes: int, dtype: torch.dtype | None, recorded: bool = False
) -> Step:
    """One optimiser step: forward pass, the losses of training, backward pass, Adam.

    Args:
        model: is put into training mode.
        images: `(B, M, 3, H, W)`.
        num_classes: number of identities C; four items share a label.
        dtype: autocast type; None: no autocast.
        recorded: replay forward pass, losses and backward pass as a CUDA graph (a `ReIDModel` on a CUDA device).
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
    """Seconds of each step, timed in turn (A B C A B C ...), so that a drift of the machine affects all alike.

    Raises:
        InputError: fewer than one repeat or a negative warm-up.
    """
    if repeats < 1 or warmup < 0:
        raise InputError(f"repeats is {repeats} and warmup is {warmup}: allowed are repeats >= 1 and warmup >= 0")
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
    """Largest number of bytes of device memory during one step; None on the CPU, where `make` is not called.

    Args:
        make: puts everything that the step needs on the device and returns the step, which is freed afterwards.
        device: that of the step.
    """
    if device.type != "cuda":
        return None
    _release()
    step = make()
    step()  # creates the state of the optimiser, and compiles the model
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
    """Name the model that runs out of device memory within the block.

    Raises:
        ConfigError: in place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"{name} ran out of device memory in {mode} with {batch_size} triplets per batch: give a smaller "
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
    """The `Cost` of timed batches; `seconds` has one entry per batch."""
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


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """What a measured time depends on: device, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def matrix_rate(device: torch.device, *, dtype: torch.dtype, size: int = 8192, repeats: int = 10) -> float | None:
    """Floating-point operations per second of a square matrix product on a CUDA device, as a yardstick for models.

    Args:
        device: on the CPU the result is None.
        dtype: of the matrices, which hold random numbers (a card computes zeros faster).
        size: rows and columns; repeats: timed products, of which the median counts, after three others.
    """
    if device.type != "cuda":
        return None
    one, two = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = time_steps({"product": lambda: one @ two}, device=device, repeats=repeats, warmup=3)["product"]
    return 2 * size**3 / statistics.median(seconds)


def as_rows(costs: Sequence[Cost], *, rate: float | None = None) -> list[CostRow]:
    """Costs as plain dictionaries, with the numbers that compare them.

    Args:
        costs: in the order of the rows.
        rate: operations per second of a matrix product, see `matrix_rate`.

    Returns:
        The attributes of each, and `relative_throughput`, relative to the first of the same mode; `tflops`, 1e12
        operations per second (2 per multiply-add; 3 times as many in training, for the gradients of inputs and
        weights); `matrix_share`, `tflops` as a share of `rate`. The last two are None if they are not known.
    """
    first: dict[str, float] = {}
    rows: list[CostRow] = []
    for cost in costs:
        base = first.setdefault(cost.mode, cost.throughput)
        passes = 3 if cost.mode == "training" else 1
        tflops = None if cost.gmac is None else 2e-3 * cost.gmac * passes * cost.throughput
        share = None if tflops is None or rate is None else 1e12 * tflops / rate
        relative = cost.throughput / base
        row = {**asdict(cost), "relative_throughput": relative, "tflops": tflops, "matrix_share": share}
        rows.append(cast(CostRow, row))
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
