"""How much faster two GPUs train than one, and what their steps consist of; minutes on two GPUs.

One process and then two train the same batches: a ViT-B/16 with SDTPS at 256 x 128, random weights, synthetic pixels on
the device; `--batch-sizes` are of all processes together. Prints Markdown tables; each cell is written to OUT as soon
as it is measured, so that what is stopped at the limit is reported as far as it came.

python benchmarks/two_gpus.py --out runs/two_gpus
"""

from __future__ import annotations

import copy
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from trireid.cli.guard import guarded
from trireid.config.load import load_config
from trireid.config.schema import Config
from trireid.data.augment import TrainTransform
from trireid.models.build import build_model
from trireid.models.compiling import room_to_compile
from trireid.models.reid import ReIDModel
from trireid.train.device import make_accelerator, resolve_device, resolve_precision
from trireid.train.epoch import make_gradients
from trireid.train.gathering import synchronise_statistics
from trireid.train.gradient_mean import GradientMean
from trireid.train.optim import build_optimizer, parameter_groups
from trireid.train.recording import RecordedGradients
from trireid.types import NUM_MODALITIES, Batch

WARM_UP, NUM_CLASSES, PROFILED = 8, 171, 3
OVERRIDES = ("model.backbone.pretrained=none", "model.head=sdtps", "model.sdtps.noise=none", "model.slimming=[]")

Step = Callable[[], dict[str, Tensor]]


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE")] = None,
    config: Annotated[Path, typer.Option()] = Path("configs/trireid/rgbnt201/baseline.yaml"),
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("runs/two_gpus"),
    batch_sizes: Annotated[str, typer.Option()] = "64,128",
    ways: Annotated[str, typer.Option()] = "plain,compiled,recorded",
    profiled: Annotated[int, typer.Option(help="batch size whose steps are profiled; 0: none")] = 64,
    steps: Annotated[int, typer.Option()] = 20,
    processes: Annotated[str, typer.Option(help="numbers of processes, one after the other")] = "1,2",
    limit: Annotated[float, typer.Option(help="seconds for each number of processes")] = 75,
    worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure, each number of processes in processes of its own."""
    if worker:
        settings = load_config(config, [*OVERRIDES, *(overrides or [])])
        work(settings, out, sizes=numbers(batch_sizes), ways=ways.split(","), profiled=profiled, steps=steps)
        return
    out.mkdir(parents=True, exist_ok=True)
    given = ["--config", config, "--out", out, "--batch-sizes", batch_sizes, "--ways", ways, "--steps", steps]
    given += ["--profiled", profiled, "--worker", *(overrides or [])]
    for number in numbers(processes):
        launch(number, list(map(str, given)), log=out / f"{number}.log", limit=limit)
    cells = [json.loads(line) for path in sorted(out.glob("*.jsonl")) for line in path.read_text().splitlines()]
    typer.echo("\n".join(describe(cells)))


def numbers(text: str) -> list[int]:
    """`64,128` -> [64, 128]."""
    return [int(part) for part in text.split(",")]


def launch(number: int, arguments: list[str], *, log: Path, limit: float) -> None:
    """Run the workers under torchrun; end all of them at the limit."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}", __file__]
    start = perf_counter()
    with log.open("w") as file:
        group = subprocess.Popen([*command, *arguments], stdout=file, stderr=file, start_new_session=True)
        try:
            code = group.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(group.pid, signal.SIGKILL)
            code = group.wait()
    typer.echo(f"{number} processes: {perf_counter() - start:.0f} s, exit code {code}, log {log}")


def work(settings: Config, out: Path, *, sizes: list[int], ways: list[str], profiled: int, steps: int) -> None:
    """One process of several: measure every cell, and write it on the main process."""
    logging.basicConfig(level=logging.INFO)
    device = resolve_device(settings.train.device)
    accelerator = make_accelerator(device=device, precision=resolve_precision(settings.train.precision, device))
    torch.manual_seed(0)
    start = build_model(
        settings.model,
        image_size=settings.data.image_size,
        num_classes=NUM_CLASSES,
        num_cameras=4,
        load_pretrained=False,
    )
    path = out / f"{accelerator.num_processes}.jsonl"
    if accelerator.is_main_process:
        path.unlink(missing_ok=True)
    for way in ways:
        for size in sizes:
            begun = perf_counter()
            step, is_replayed = make_step(copy.deepcopy(start), settings, accelerator, size=size, way=way)
            with room_to_compile():
                first = step()["total"].item()
                for _ in range(WARM_UP):
                    step()
                cell = {"processes": accelerator.num_processes, "way": way, "batch": size, "loss": first}
                cell |= time_steps(step, accelerator.device, steps)
                if size == profiled and accelerator.device.type == "cuda":
                    cell |= {"shares": shares(step)}
            cell |= {"recorded": is_replayed(), "cell_seconds": perf_counter() - begun}
            if accelerator.is_main_process:
                with path.open("a") as file:
                    file.write(json.dumps(cell) + "\n")
            del step, is_replayed


def make_step(  # type: ignore[no-untyped-def]
    model: ReIDModel, settings: Config, accelerator, *, size: int, way: str
) -> tuple[Step, Callable[[], bool]]:
    """A training step of a model, as `trireid.train.loop` puts it together, and whether it is replayed."""
    number = accelerator.num_processes
    model = model.to(accelerator.device)
    groups = parameter_groups(
        model.parameter_groups(), lr=1e-5, backbone_lr=1e-6, bias_lr_factor=2.0, classifier_lr_factor=1.0
    )
    optimizer = accelerator.prepare_optimizer(build_optimizer(groups, name="adam"))
    if number > 1:
        synchronise_statistics(model)
    if way != "plain":
        model.backbone.compile_blocks()
    mean = GradientMean(model) if number > 1 and way == "recorded" else None
    trained = accelerator.prepare_model(model, evaluation_mode=mean is not None)
    gradients = partial(
        make_gradients,
        model=trained,
        accelerator=accelerator,
        settings=settings.train,
        transform=TrainTransform(),
        complete=True,
        mean=mean,
    )
    recording = RecordedGradients(gradients, model) if way == "recorded" else None
    run, batch = recording or gradients, share_of_batch(size, settings, accelerator)

    def step() -> dict[str, Tensor]:
        trained.train()
        terms = run(batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return terms

    return step, lambda: recording is not None and recording.is_recorded


def share_of_batch(size: int, settings: Config, accelerator) -> Batch:  # type: ignore[no-untyped-def]
    """The rows of this process of a batch of random pixels, four items of each identity."""
    device, per_process = accelerator.device, size // accelerator.num_processes
    generator = torch.Generator().manual_seed(1)
    shape = (size, NUM_MODALITIES, 3, *settings.data.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    own = slice(accelerator.process_index * per_process, (accelerator.process_index + 1) * per_process)
    number = torch.arange(size)[own].to(device)
    present = torch.ones(per_process, NUM_MODALITIES, dtype=torch.bool, device=device)
    return Batch(images[own].to(device), present, label=number // 4, camera=number % 4, item=number, seed=number)


def wait(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(step: Step, device: torch.device, steps: int) -> dict[str, float]:
    """Milliseconds a step takes, and until Python has launched one."""
    wait(device)
    start = perf_counter()
    step()
    launched = perf_counter() - start
    wait(device)
    start = perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return {"ms": 1e3 * (perf_counter() - start) / steps, "launch_ms": 1e3 * launched}


def shares(step: Step) -> dict[str, float]:
    """Milliseconds a step in which the device sends, computes, sends without computing, and does nothing."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        start = perf_counter()
        for _ in range(PROFILED):
            step()
        torch.cuda.synchronize()
        wall = perf_counter() - start
    spans = [
        (event.time_range.start, event.time_range.end, "nccl" in event.name.lower())
        for event in trace.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith("ProfilerStep")
    ]
    compute, sending = ([(a, b) for a, b, nccl in spans if nccl == kind] for kind in (False, True))
    busy = covered((a, b) for a, b, _ in spans)
    lengths = {
        "computing": covered(compute),
        "sending": covered(sending),
        "sending alone": busy - covered(compute),
        "idle": max(0.0, 1e6 * wall - busy),
    }
    numbers = {"kernels": len(compute) / PROFILED, "messages": len(sending) / PROFILED}
    return {name: value / 1e3 / PROFILED for name, value in lengths.items()} | numbers


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans, in their unit."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def describe(cells: list[dict]) -> list[str]:  # type: ignore[type-arg]
    """Markdown: speeds and their ratios to one process, then the parts of the profiled steps."""
    alone = {(cell["way"], cell["batch"]): cell for cell in cells if cell["processes"] == 1}
    lines = ["| batch | way | GPUs | ms per step | launched in ms | triplets/s | relative | first loss |"]
    lines += ["|---:|---|---:|---:|---:|---:|---:|---:|"]
    for cell in sorted(cells, key=lambda each: (each["batch"], each["way"], each["processes"])):
        one = alone.get((cell["way"], cell["batch"]))
        ratio = "" if one is None else f"{one['ms'] / cell['ms']:.2f}x"
        way = cell["way"] + (" (not possible)" if cell["way"] == "recorded" and not cell["recorded"] else "")
        lines.append(
            f"| {cell['batch']} | {way} | {cell['processes']} | {cell['ms']:.1f} | {cell['launch_ms']:.1f} "
            f"| {1e3 * cell['batch'] / cell['ms']:.0f} | {ratio} | {cell['loss']:.4f} |"
        )
    profiled = [cell for cell in cells if "shares" in cell]
    if profiled:
        names = list(profiled[0]["shares"])
        lines += ["", f"| batch | way | GPUs | {' | '.join(names)} |", f"|---:|---|---:|{'---:|' * len(names)}"]
        lines += [
            f"| {cell['batch']} | {cell['way']} | {cell['processes']} | "
            + " | ".join(f"{cell['shares'][name]:.1f}" for name in names)
            + " |"
            for cell in profiled
        ]
    return lines


if __name__ == "__main__":
    with guarded():
        typer.run(main)
