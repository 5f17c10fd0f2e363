"""Matrix products of the ViT's blocks in 8-bit floating point (e4m3), beside bf16: speed and accuracy on one GPU.

Needs a GPU of compute capability 8.9 or later (Hopper for the published rates). One call, about two minutes:

python benchmarks/fp8.py --out runs/fp8.json
python benchmarks/fp8.py --no-speed --run runs/synthetic/vit_small
python benchmarks/fp8.py --no-speed --weights dinov2_vits14.safetensors --data data/tno_scenes

Speed: dense and with three cuts, blocks compiled and the forward pass recorded, all models of a group timed in turn.
A variant is a list of products, `qkv+fc1+fc2`, of all blocks or of some, `fc1+fc2@2-11` (blocks count from 0). Three
cuts are timed with the first two variants.
Accuracy: mAP and the features' cosine to those in bf16, of trained runs, or of a ViT-S/14 as it is; with cuts, also the
cosine with the choices of bf16 imposed (`cosine_given`), by cut the share of the patches kept that are others
(`changed`), and the share of triplets with equal choices; row fp32 shows what bf16 itself changes. Scales and rounding
are found with the first batch of the data that is used. A variant that fails is reported, and the others go on.
Many trained runs at once: benchmarks/fp8_accuracy.py.
What it gave: docs/performance.md.
"""

from __future__ import annotations

import copy
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from fp8_accuracy import (
    BF16,
    Row,
    accuracy,
    agreement,
    all_float8,
    autocast,
    compare_choices,
    of_variant,
    reported,
    show,
)
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from trireid.benchmark import describe_machine, inference_step, time_steps
from trireid.cli.guard import guarded
from trireid.config.load import load_config
from trireid.config.schema import Config
from trireid.data.labels import LabelMap
from trireid.files import write_json
from trireid.models.build import build_model
from trireid.models.compiling import room_to_compile
from trireid.models.low_precision import PRODUCTS
from trireid.models.recorded import RecordedModel
from trireid.models.reid import ReIDModel
from trireid.models.rounding import cast, scale_of
from trireid.train.checkpoint import build_for, load_checkpoint
from trireid.train.device import resolve_device
from trireid.train.inputs import scan_index
from trireid.types import NUM_MODALITIES

CUTS = (
    "model.slimming=[{after_block: 2, keep_ratio: 0.6}, {after_block: 4, keep_ratio: 0.6}, "
    "{after_block: 7, keep_ratio: 0.8}]"
)
GROUPS = {"dense": "model.slimming=[]", "three cuts": CUTS}
KINDS = {
    "attention": r"flash|fmha|attention|sdpa|cudnn::fusion|cudnn_generated",
    "pointwise": r"triton",
    "matrix products": r"gemm|gemv|cutlass|nvjet|xmma|sm90_|sm80_|cublas|scaled_mm",
}
REPEATED = 20  # calls of a single product


def fresh(settings: Config, device: torch.device) -> ReIDModel:
    """A model with random weights whose norms differ by channel, as those of trained ones do."""
    size = settings.data.image_size
    torch.manual_seed(0)
    model = build_model(settings.model, image_size=size, num_classes=171, num_cameras=4, load_pretrained=False)
    with torch.no_grad():
        for part in model.backbone.vit.blocks.modules():
            if isinstance(part, nn.LayerNorm):
                part.weight.mul_(torch.exp(0.5 * torch.randn_like(part.weight)))
                part.bias.add_(0.2 * torch.randn_like(part.bias))
    return model.to(device).eval()


def time_group(
    group: str,
    settings: Config,
    variants: Sequence[str],
    *,
    device: torch.device,
    batch_size: int,
    repeats: int,
    profiled: bool,
    failures: list[str],
) -> list[Row]:
    """Rows of bf16 and all variants, timed in turn."""
    model = fresh(settings, device)
    images = torch.randn(batch_size, NUM_MODALITIES, 3, *settings.data.image_size, device=device)

    def calibrate(changed: ReIDModel) -> None:
        with autocast(device):
            changed(images)

    start = time.perf_counter()
    converted = all_float8(model, calibrate)
    conversion = time.perf_counter() - start
    steps: dict[str, Callable[[], Any]] = {}
    rows: dict[str, Row] = {}
    compared: list[Row] = []
    if model.backbone.stages:
        with reported(f"choices of {group}", failures):
            compared = compare_choices(model, {name: of_variant(name, converted, model) for name in variants}, images)
    expected = None
    for name in ("bf16", *variants):
        with reported(f"{group}, {name}", failures):
            start = time.perf_counter()
            # Compilation changes methods of a model, so that each is a copy of one that is not compiled.
            each = copy.deepcopy(model) if name == "bf16" else of_variant(name, converted, model)
            runner: Callable[[Tensor], Any] = each
            if device.type == "cuda":
                each.backbone.compile_blocks(cuts=True)
                runner = RecordedModel(each, dtype=BF16)
            step = inference_step(runner, images, dtype=BF16)
            feature = step().features["global"].float().clone()  # type: ignore[attr-defined]
            expected = feature if expected is None else expected
            rows[name] = {"group": group, "variant": name, **agreement(feature, expected)}
            rows[name] |= {"convert_s": conversion, "compile_s": time.perf_counter() - start}
            steps[name] = step
    for row in compared:  # not compiled: the choices of bf16 are imposed
        known = rows.setdefault(row["variant"], {"group": group})
        rows[row["variant"]] = {**row, **known}
    seconds = time_steps(steps, device=device, repeats=repeats, warmup=3)
    for name, values in seconds.items():
        latency = sorted(values)[len(values) // 2]
        rows[name] |= {"ms": 1e3 * latency, "triplets_per_s": batch_size / latency}
        rows[name]["ratio"] = rows.get("bf16", rows[name])["ms"] / rows[name]["ms"]
        if profiled and device.type == "cuda":
            with reported(f"profile of {group}, {name}", failures):
                rows[name]["profile"] = kernels(steps[name])
    return list(rows.values())


def kernels(step: Callable[[], Any], *, repeats: int = 3, listed: int = 14) -> Row:
    """Milliseconds of a step by kind of kernel, and its longest kernels."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(repeats):
            step()
        torch.cuda.synchronize()
    kinds, names = Counter[str](), Counter[str]()
    for event in trace.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kind = next((kind for kind, form in KINDS.items() if re.search(form, event.name, re.IGNORECASE)), "other")
            kinds[kind] += event.device_time / 1e3 / repeats
            names[event.name[:110]] += event.device_time / 1e3 / repeats
    return {"kinds": dict(kinds.most_common()), "kernels": dict(names.most_common(listed))}


def time_products(width: int, rows: int, *, device: torch.device) -> list[Row]:
    """Milliseconds of each product of a block: bf16, e4m3 with one scale, e4m3 with one per row, and a plain cast."""
    found = []
    for name, (inputs, outputs) in zip(
        PRODUCTS, ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)), strict=True
    ):
        x, bias = torch.randn(rows, inputs, device=device, dtype=BF16), torch.zeros(outputs, device=device, dtype=BF16)
        weight = torch.randn(outputs, inputs, device=device, dtype=BF16) / inputs**0.5
        scale = scale_of(x.abs().amax())
        x8, weight8 = cast(x.float() / scale), cast(weight.float() / scale)
        many, few = scale.expand(rows, 1).contiguous(), scale.expand(1, outputs).contiguous()
        options: dict[str, Any] = {"bias": bias, "out_dtype": BF16, "use_fast_accum": True}
        calls: dict[str, Callable[[], Tensor]] = {
            "bf16": lambda x=x, w=weight, b=bias: nn.functional.linear(x, w, b),
            "one scale": lambda x=x8, w=weight8, s=scale, o=options: torch._scaled_mm(
                x, w.T, scale_a=s, scale_b=s, **o
            ),
            "scale per row": lambda x=x8, w=weight8, a=many, b=few, o=options: torch._scaled_mm(
                x, w.T, scale_a=a, scale_b=b, **o
            ),
        }
        found.append({"product": name} | {way: _milliseconds(call) for way, call in calls.items()})
    return found


def _milliseconds(call: Callable[[], Tensor]) -> float:
    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPEATED):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / REPEATED


def opened(
    run: Sequence[Path], weights: Path | None, data: Path | None, failures: list[str]
) -> Iterator[tuple[str, ReIDModel, Config, LabelMap]]:
    """Trained models, and the ViT-S/14 with these weights as they are."""
    for path in run:
        with reported(str(path), failures):
            checkpoint = load_checkpoint(path)
            yield path.name, build_for(checkpoint, checkpoint.config), checkpoint.config, checkpoint.label_map
    if weights is not None and data is not None:
        chosen = [f"data.root={data}", f"model.backbone.pretrained={weights}", "model.pife=false"]
        settings = load_config(Path("configs/trireid/tno_scenes/baseline.yaml"), chosen)
        labels = LabelMap.from_records(scan_index(settings).train)
        model = build_model(
            settings.model, image_size=settings.data.image_size, num_classes=2, num_cameras=0, load_pretrained=True
        )
        yield "ViT-S/14 as it is", model, settings, labels


def main(
    variants: Annotated[list[str] | None, typer.Argument(help="such as qkv+fc1+fc2, fc1+fc2@2-11, all")] = None,
    config: Annotated[Path, typer.Option(help="for the speed")] = Path("configs/trireid/rgbnt201/baseline.yaml"),
    run: Annotated[list[Path] | None, typer.Option(help="a trained run, for the accuracy; repeat")] = None,
    weights: Annotated[Path | None, typer.Option(help="of a ViT-S/14, for the accuracy as it is")] = None,
    data: Annotated[Path | None, typer.Option(help="tno_scenes, for --weights")] = None,
    batch_size: Annotated[int, typer.Option()] = 128,
    repeats: Annotated[int, typer.Option()] = 30,
    speed: Annotated[bool, typer.Option(help="measure it")] = True,
    setting: Annotated[list[str] | None, typer.Option(help="KEY=VALUE of --config; repeat")] = None,
    device: Annotated[str, typer.Option(help="cpu only tries the script")] = "cuda",
    budget: Annotated[float, typer.Option(help="seconds after which no further group is begun")] = 150.0,
    out: Annotated[Path | None, typer.Option(help="JSON file")] = None,
) -> None:
    """Print Markdown tables of speed and accuracy, and profiles; write everything as JSON."""
    chosen = variants or ["qkv+fc1+fc2", "all", "fc1+fc2"]
    place, began, failures = resolve_device(device), time.perf_counter(), list[str]()
    found: dict[str, Any] = {"machine": describe_machine(place), "speed": [], "accuracy": [], "failures": failures}

    def save(what: str) -> None:
        typer.echo(f"[{time.perf_counter() - began:.0f} s] {what}")
        if out is not None:
            write_json(out, found)

    if speed and place.type == "cuda":
        with reported("single products", failures):
            found["products"] = time_products(768, batch_size * NUM_MODALITIES * 129, device=place)
            show(found["products"], {"product": "", "bf16": ".3f", "one scale": ".3f", "scale per row": ".3f"})
        save("single products, ms")
    for name, model, settings, labels in opened(run or [], weights, data, failures):
        with reported(name, failures):
            given = {"device": place, "failures": failures}
            found["accuracy"] += accuracy(name, model, settings, labels, chosen, **given)
        save(name)
    if found["accuracy"]:
        columns = {"data": "", "variant": "", "mAP": ".2f", "rank1": ".2f", "cosine": ".5f", "lowest_cosine": ".5f"}
        columns |= {"cosine_given": ".5f", "changed": ".4f", "same_items": ".3f"}
        show(found["accuracy"], columns)
    for group, override in GROUPS.items() if speed else ():
        if time.perf_counter() - began > budget:
            save(f"{group} is left out: {budget:.0f} s are over")
            continue
        timed = chosen if group == "dense" else chosen[:2]  # each cut is two more pieces to compile
        with reported(group, failures), room_to_compile(len(timed) + 1):
            settings = load_config(config, ["model.backbone.pretrained=none", *(setting or []), override])
            how: dict[str, Any] = {"device": place, "batch_size": batch_size, "repeats": repeats, "profiled": True}
            found["speed"] += time_group(group, settings, timed, failures=failures, **how)
        torch._dynamo.reset()
        save(group)
    if found["speed"]:
        columns = {"group": "", "variant": "", "ms": ".2f", "triplets_per_s": ".0f", "ratio": ".3f", "cosine": ".5f"}
        columns |= {"lowest_cosine": ".5f", "cosine_given": ".5f", "changed": ".4f", "same_items": ".3f"}
        show(found["speed"], columns | {"convert_s": ".1f", "compile_s": ".1f"})
    for row in found["speed"]:
        if "profile" in row:
            kinds = ", ".join(f"{kind} {ms:.2f}" for kind, ms in row["profile"]["kinds"].items())
            typer.echo(f"\n{row['group']}, {row['variant']}: {kinds} ms")
            for name, ms in row["profile"]["kernels"].items() if row["group"] == "dense" else ():
                typer.echo(f"  {ms:7.3f}  {name}")
    save(f"done, {len(failures)} failures")


if __name__ == "__main__":
    with guarded():
        typer.run(main)
