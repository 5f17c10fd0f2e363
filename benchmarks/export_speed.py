"""How fast an exported model is beside torch: dense and slimmed, in ONNX Runtime and OpenVINO.

    python benchmarks/export_speed.py --out benchmarks/results/export_speed.json
    python benchmarks/export_speed.py --device cuda --half --batch-size 64 --out export_speed_cuda.json

Each takes several minutes. The second needs a GPU and an ONNX Runtime with CUDA.
Every round times all candidates one after the other, so that what else the machine does meets all of them. A time is
that of the fastest round, which other work on the machine disturbed least; the median is given beside it. On a busy
machine `--clock cpu --threads 1` counts the seconds that the process computes. Weights are random: they do not change
the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from trireid.cli.guard import guarded
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.data.labels import LabelMap
from trireid.embedding.onnx_runtime import open_session
from trireid.export.runtimes import open_runtime
from trireid.export.tracing import trace
from trireid.export.writing import describe
from trireid.models.build import build_model
from trireid.models.reid import ReIDModel
from trireid.train.checkpoint import Checkpoint

CUTS = "model.slimming=[{after_block: 4, keep_ratio: 0.5}]"
KINDS = {"dense": [], "slimmed": [CUTS]}
Run = Callable[[], object]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Time all candidates and write the table."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    images = torch.randn(arguments.batch_size, 3, 3, 256, 128)
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, overrides in KINDS.items():
            runs |= candidates(kind, overrides, images, arguments, Path(folder))
        seconds = measure(runs, arguments.rounds, CLOCKS[arguments.clock])
    rows = {name: row(name, seconds, arguments.batch_size) for name in runs}
    for name, each in rows.items():
        print(f"{name:32} {each['ms_per_item']:9.1f} ms per item  {each['speedup_over_torch']:5.2f} x torch")
    slimmed = {
        runtime: min(seconds[f"dense {runtime}"]) / min(seconds[f"slimmed {runtime}"])
        for runtime in (name.removeprefix("dense ") for name in runs if name.startswith("dense "))
    }
    print("slimmed over dense:", {name: round(value, 2) for name, value in slimmed.items()})
    if arguments.out:
        about = {
            "backbone": arguments.backbone, "head": "hdm_atmoe", "cuts": CUTS, "image_size": [256, 128],
            "batch_size": arguments.batch_size, "rounds": arguments.rounds, "load_average": os.getloadavg()[0],
            "device": device_name(arguments),
            "versions": {name: version(name) for name in ("torch", "onnxruntime", "openvino")},
        }  # fmt: skip
        arguments.out.write_text(json.dumps({**about, "rows": rows, "slimmed_over_dense": slimmed}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_b16")
    parser.add_argument("--batch-size", type=int, default=1, help="triplets per batch")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--half", action="store_true", help="half precision, on cuda")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def candidates(
    kind: str, overrides: list[str], images: torch.Tensor, arguments: argparse.Namespace, folder: Path
) -> dict[str, Run]:
    """What is timed for one kind of model: functions without arguments, by name."""
    settings = [f"model.backbone.name={arguments.backbone}", "model.backbone.pretrained=none"]
    config = override_config(Config(), [*settings, "model.head=hdm_atmoe", *overrides])
    model = build_model(config.model, image_size=(256, 128), num_classes=0, num_cameras=0, load_pretrained=False).eval()
    checkpoint = Checkpoint(folder / "model", model.state_dict(), config, LabelMap((), ()), 0)
    half = arguments.half and arguments.device == "cuda"
    places = (0, 1, 2)
    description = describe(checkpoint, model, modalities=("rgb", "nir", "tir"), opset=18, half=half)
    with torch.no_grad():
        model(images[:1])
    path = folder / f"{kind}.onnx"
    path.write_bytes(
        trace(
            model,
            description,
            places=places,
            example=images[:2],
        ).SerializeToString()
    )
    given = {"images": images.numpy()}
    if arguments.device == "cuda":
        return cuda_candidates(kind, model, path, images, half=half)
    found: dict[str, Run] = {f"{kind} torch": lambda: torch_run(model, images)}
    for runtime in ("onnxruntime", "openvino"):
        run = open_runtime(runtime, path, threads=arguments.threads)
        found[f"{kind} {runtime}"] = lambda run=run: run(given)
    return found


def torch_run(model: ReIDModel, images: torch.Tensor) -> object:
    """One batch in torch without gradients."""
    with torch.inference_mode():
        return model(images).embedding


def cuda_candidates(kind: str, model: ReIDModel, path: Path, images: torch.Tensor, *, half: bool) -> dict[str, Run]:
    """The same on a GPU, with the images there already; the result comes back to the host."""
    there, on_device = model.to("cuda"), images.to("cuda")

    def in_torch() -> object:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
            return there(on_device).embedding.float().cpu()

    session = open_session(path, providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    binding = session.io_binding()
    binding.bind_input("images", "cuda", 0, np.float32, tuple(on_device.shape), on_device.data_ptr())
    binding.bind_output("joint", "cpu")

    def in_onnxruntime() -> object:
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()

    return {f"{kind} torch": in_torch, f"{kind} onnxruntime": in_onnxruntime}


def measure(runs: dict[str, Run], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = clock()
            run()
            if number:
                seconds[name].append(clock() - started)
    return seconds


def row(name: str, seconds: dict[str, list[float]], batch_size: int) -> dict[str, float]:
    """The result of one candidate."""
    beside = seconds[f"{name.split()[0]} torch"]
    return {
        "ms_per_item": 1000 * min(seconds[name]) / batch_size,
        "median_ms_per_item": 1000 * statistics.median(seconds[name]) / batch_size,
        "speedup_over_torch": min(beside) / min(seconds[name]),
    }


def device_name(arguments: argparse.Namespace) -> str:
    """What it ran on."""
    if arguments.device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {arguments.threads} threads, {arguments.clock} time"


if __name__ == "__main__":
    with guarded():
        main()
