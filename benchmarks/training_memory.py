"""Memory of a training step on one GPU, and the largest batch that fits a smaller card; a minute on a GPU.

Ours plain, compiled, and with blocks that are computed again in the backward pass (`train.recompute_blocks`); with
`--upstream FOLDER` also the model of a checkout of DeMo, trained as it trains: fp16 autocast, a gradient scaler and
weights in fp32. All have a ViT-B/16 as CLIP's at 256 x 128 with random weights, HDM and ATMoE, our losses, and Adam;
the images lie on the device. A card is imitated by a limit of torch's allocator, of 24 and 80 times 10^9 bytes. Other
users of a card's memory (the context of CUDA, a display) are not counted. Prints a Markdown table.

python benchmarks/training_memory.py --out runs/training_memory.json
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from time import perf_counter
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from trireid.cli.guard import guarded
from trireid.config.load import load_config
from trireid.config.schema import Config
from trireid.losses import reid_loss
from trireid.models.build import build_model
from trireid.models.compiling import room_to_compile
from trireid.train.device import autocast_dtype, resolve_precision
from trireid.types import NUM_MODALITIES, ReIDOutput

NUM_CLASSES, NUM_CAMERAS, REPEATS = 171, 4, 5
OVERRIDES = ("model.backbone.pretrained=none", "model.head=hdm_atmoe", "model.slimming=[]")
WAYS = ("plain", "recomputed", "compiled", "compiled, recomputed")


@dataclass(frozen=True)
class Trained:
    """A model with its optimiser: a step takes images `(B, M, 3, H, W)` and labels and cameras `(B,)`."""

    model: nn.Module
    step: Callable[[Tensor, Tensor, Tensor], None]
    image_size: tuple[int, int]


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE of our model")] = None,
    config: Annotated[Path, typer.Option()] = Path("configs/trireid/rgbnt201/baseline.yaml"),
    upstream: Annotated[Path | None, typer.Option(help="a checkout of DeMo")] = None,
    ways: Annotated[str, typer.Option(help="separated by semicolons")] = ";".join(WAYS),
    batch_size: Annotated[int, typer.Option()] = 64,
    limits: Annotated[str, typer.Option(help="bytes of cards, in 10^9")] = "24,80",
    device: Annotated[str, typer.Option(help="cpu: only that everything runs")] = "cuda",
    out: Annotated[Path | None, typer.Option(help="results as JSON")] = None,
) -> None:
    """Measure, one model after the other."""
    place, sizes = torch.device(device), [int(part) for part in limits.split(",")]
    settings = load_config(config, [*OVERRIDES, *(overrides or [])])
    named = {name: lambda name=name: ours(settings, place, way=name) for name in ways.split(";")}
    if upstream is not None:
        named["upstream, fp16"] = lambda: theirs(upstream, settings.data.image_size, place)
    heads = [f"largest batch in {size} GB" for size in sizes]
    typer.echo(f"| model | peak at batch {batch_size}, GB | ms per step | {' | '.join(heads)} |")
    typer.echo(f"|---|---:|---:|{'---:|' * len(sizes)}")
    rows = []
    for name, make in named.items():
        begun = perf_counter()
        with room_to_compile():
            row = measure(make(), place, batch_size=batch_size, limits=sizes)
        rows.append({"model": name, **row, "seconds": perf_counter() - begun})
        found = " | ".join(str(row["largest"].get(size, "")) for size in sizes)
        typer.echo(f"| {name} | {row['peak']:.2f} | {row['ms']:.1f} | {found} |")
        free(place)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"device": name_of(place), "rows": rows}, indent=1))


def ours(settings: Config, device: torch.device, *, way: str) -> Trained:
    """Our model, in one of WAYS."""
    size, dtype = settings.data.image_size, autocast_dtype(resolve_precision(settings.train.precision, device))
    model = build_model(
        settings.model, image_size=size, num_classes=NUM_CLASSES, num_cameras=NUM_CAMERAS, load_pretrained=False
    ).to(device)
    model.backbone.recompute_blocks = "recomputed" in way
    if "compiled" in way:
        model.backbone.compile_blocks()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def step(images: Tensor, label: Tensor, camera: Tensor) -> None:
        model.train()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            output = model(images, camera=camera)
        reid_loss(output, label)["total"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Trained(model, step, size)


def theirs(folder: Path, size: tuple[int, int], device: torch.device) -> Trained:
    """The model of a checkout of DeMo with fresh weights, trained in fp16 as its own loop does, with our losses."""
    model = upstream_model(folder, size).to(device)
    half = device.type == "cuda"
    optimizer = torch.optim.Adam([{"params": [p]} for p in model.parameters() if p.requires_grad], lr=1e-6)
    scaler = torch.amp.GradScaler(device.type, enabled=half)

    def step(images: Tensor, label: Tensor, camera: Tensor) -> None:
        model.train()
        optimizer.zero_grad()
        red, near, thermal = images.unbind(1)
        with torch.autocast(device.type, dtype=torch.float16) if half else nullcontext():
            scores = model({"RGB": red, "NI": near, "TI": thermal}, label=label, cam_label=camera, view_label=camera)
        pairs = {str(number): scores[2 * number : 2 * number + 2] for number in range(len(scores) // 2)}
        output = ReIDOutput(
            features={name: feature for name, (_, feature) in pairs.items()},
            present=torch.ones(images.shape[:2], dtype=torch.bool, device=device),
            logits={name: score for name, (score, _) in pairs.items()},
        )
        scaler.scale(reid_loss(output, label)["total"]).backward()
        scaler.step(optimizer)
        scaler.update()

    return Trained(model, step, size)


def upstream_model(folder: Path, size: tuple[int, int]) -> nn.Module:
    """Import its model without what the model does not use: text, LoRA, other backbones, counts of operations."""
    sys.path.insert(0, str(folder))
    absent = ("ftfy", "regex", "fvcore", "fvcore.nn", "fvcore.nn.jit_handles")
    unused = ("modeling.backbones.t2t", "modeling.backbones.basic_cnn_params.flops", "modeling.make_model_clipreid")
    for name in (*absent, *unused):
        sys.modules[name] = _Hollow(name)
    cut = SimpleNamespace
    settings = cut(
        MODEL=cut(
            TRANSFORMER_TYPE="ViT-B-16", STRIDE_SIZE=[16, 16], SIE_CAMERA=True, SIE_VIEW=False, SIE_COE=1.0, DIRECT=1,
            NECK="bnneck", ID_LOSS_TYPE="softmax", HDM=True, ATM=True, GLOBAL_LOCAL=True, HEAD=4, FROZEN=False,
            PROMPT=False, ADAPTER=False, PRETRAIN_PATH_T="",
        ),
        DATALOADER=cut(NUM_INSTANCE=8),
        INPUT=cut(SIZE_TRAIN=list(size)),
        TEST=cut(NECK_FEAT="before", MISS="nothing"),
    )  # fmt: skip
    with redirect_stdout(StringIO()):
        from modeling import make_model, meta_arch
        from modeling.clip.model import VisionTransformer

        visual = VisionTransformer(size[0] // 16, size[1] // 16, 16, 16, 768, 12, 12, 512, settings)
        meta_arch.load_clip_to_cpu = lambda *_: cut(visual=visual, to=lambda _: None)
        model: nn.Module = make_model(settings, NUM_CLASSES, NUM_CAMERAS)
    return model


class _Hollow(ModuleType):
    """A module that has every name, for imports whose content is not used."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def measure(trained: Trained, device: torch.device, *, batch_size: int, limits: list[int]) -> dict[str, Any]:
    """Peak memory, milliseconds per step, and the largest batch under each limit."""
    half = peak_of(trained, device, batch_size // 2)
    peak = peak_of(trained, device, batch_size)
    inputs = batch_of(trained, device, batch_size)
    wait(device)
    start = perf_counter()
    for _ in range(REPEATS):
        trained.step(*inputs)
    wait(device)
    seconds = (perf_counter() - start) / REPEATS
    del inputs
    largest = {}
    for limit in limits if device.type == "cuda" else []:
        total = torch.cuda.get_device_properties(device).total_memory
        if limit * 1e9 > total:
            continue
        free(device)
        torch.cuda.set_per_process_memory_fraction(limit * 1e9 / total)
        item = max(1.0, 2 * (peak - half) / batch_size)
        guess = batch_size + (limit * 1e9 - peak) / item
        largest[limit] = largest_that_fits(lambda size: fits(trained, device, size), guess=int(guess))
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"peak": peak / 1e9, "ms": 1e3 * seconds, "largest": largest}


def largest_that_fits(fit: Callable[[int], bool], *, guess: int, tries: int = 7) -> int:
    """The largest batch that is known to fit, to about 2 %, searched for from a guess; 0 where no try did."""
    step = max(4, round(0.02 * guess) // 4 * 4)
    known, too_large, size, stride = 0, 0, max(4, guess // 4 * 4), step
    for _ in range(tries):
        if fit(size):
            known = size
        else:
            too_large = size
        if known and too_large:
            size = (known + too_large) // 8 * 4
        else:
            size, stride = max(4, size + (stride if known else -stride)), 2 * stride
        if (too_large and too_large - known <= step) or size in (known, too_large):
            break
    return known


def fits(trained: Trained, device: torch.device, size: int) -> bool:
    """Whether a step of this batch size has enough memory."""
    free(device)
    try:
        trained.step(*batch_of(trained, device, size))
        wait(device)
    except torch.OutOfMemoryError:
        trained.model.zero_grad(set_to_none=True)
        return False
    return True


def peak_of(trained: Trained, device: torch.device, size: int) -> int:
    """Bytes that the tensors of a step need at most, once the optimiser has its moments."""
    inputs = batch_of(trained, device, size)
    trained.step(*inputs)
    trained.step(*inputs)
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    trained.step(*inputs)
    return torch.cuda.max_memory_allocated(device)


def batch_of(trained: Trained, device: torch.device, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random images, four of each identity."""
    number = torch.arange(size, device=device)
    images = torch.randn(size, NUM_MODALITIES, 3, *trained.image_size, device=device)
    return images, number // 4 % NUM_CLASSES, number % NUM_CAMERAS


def free(device: torch.device) -> None:
    """Give unused memory back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def wait(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(device: torch.device) -> str:
    """The card."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    with guarded():
        typer.run(main)
