r"""Where the time of a step goes on a GPU: kernels by kind, launches, and time in which the device waits.

python benchmarks/profile_step.py --config configs/trireid/rgbnt201/baseline.yaml --mode training --batch-size 64 \
    --compile model.backbone.pretrained=none
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from trireid.benchmark import inference_step, training_step
from trireid.cli.guard import guarded
from trireid.config.load import load_config
from trireid.models.build import build_model
from trireid.train.device import autocast_dtype, resolve_precision
from trireid.types import NUM_MODALITIES

KINDS = {
    "attention": r"flash|fmha|attention|sdpa|cudnn::fusion",
    "matrix products": r"gemm|gemv|cutlass|nvjet|xmma|sm90_|sm80_|cublas",
    "optimiser": r"multi_tensor|FusedAdam|adam",
    "copies": r"memcpy|memset|copy_kernel",
}
REPEATS = 5


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE")] = None,
    config: Annotated[Path, typer.Option()] = Path("configs/trireid/rgbnt201/baseline.yaml"),
    mode: Annotated[str, typer.Option(help="inference or training")] = "inference",
    batch_size: Annotated[int, typer.Option()] = 128,
    compiled: Annotated[bool, typer.Option("--compile")] = False,
    top: Annotated[int, typer.Option(help="kernels to list")] = 12,
) -> None:
    """Profile one configuration."""
    settings = load_config(config, overrides or [])
    device = torch.device("cuda")
    dtype = autocast_dtype(resolve_precision(settings.train.precision, device))
    model = build_model(
        settings.model, image_size=settings.data.image_size, num_classes=171, num_cameras=4, load_pretrained=False
    ).to(device)
    model.train(mode == "training")
    if compiled:
        model.backbone.compile_blocks(cuts=True)
    images = torch.randn(batch_size, NUM_MODALITIES, 3, *settings.data.image_size, device=device)
    if mode == "training":
        step = training_step(model, images, num_classes=171, dtype=dtype)
    else:
        step = inference_step(model, images, dtype=dtype)
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    start = perf_counter()
    for _ in range(REPEATS):
        step()
    torch.cuda.synchronize()
    wall = (perf_counter() - start) / REPEATS
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        for _ in range(REPEATS):
            step()
        torch.cuda.synchronize()
    seconds, launches, kernels = Counter[str](), Counter[str](), Counter[str]()
    for event in trace.events():
        if event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        kind = next((name for name, form in KINDS.items() if re.search(form, event.name, re.IGNORECASE)), "pointwise")
        seconds[kind] += event.device_time / 1e6 / REPEATS
        launches[kind] += 1
        kernels[event.name[:100]] += event.device_time / 1e3 / REPEATS
    busy = sum(seconds.values())
    typer.echo(f"{mode} {' '.join(overrides or [])}{' compiled' if compiled else ''}: {1e3 * wall:.2f} ms a step")
    for kind, value in seconds.most_common():
        typer.echo(f"  {kind:16} {1e3 * value:8.2f} ms {launches[kind] / REPEATS:8.0f} launches")
    typer.echo(f"  {'device waits':16} {1e3 * max(0.0, wall - busy):8.2f} ms")
    for name, value in kernels.most_common(top):
        typer.echo(f"    {value:8.3f} ms  {name}")


if __name__ == "__main__":
    with guarded():
        typer.run(main)
