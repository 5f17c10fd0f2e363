"""Where the seconds of a compilation with an empty cache go, and what makes it shorter; about two minutes on a GPU.

Each way is a process of its own with a cache folder of its own: it makes a ViT-B/16 with the head SDTPS, compiles its
blocks for training and for evaluation as a run does (`trireid.train.compilation`), and then times the compiled steps,
since a compilation that tries less may choose slower kernels. "Total" is what a run adds to its log. `--quick` is a
tiny model on the CPU, which has no kernels to choose.

python benchmarks/cold_compile.py --out runs/cold_compile
python benchmarks/cold_compile.py --quick --ways late,again
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trireid.cli.guard import guarded
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.models.build import build_model
from trireid.models.compiling import room_to_compile, start_compile_workers
from trireid.models.reid import ReIDModel
from trireid.train.compilation import _try_blocks
from trireid.train.device import make_accelerator
from trireid.types import NUM_MODALITIES

PHASES = {  # names of torch's timers, and what the tables call them; those of a row may contain each other
    "entire_frame_compile": "all of it",
    "_compile.compile_inner": "all of it, inside",
    "bytecode_tracing": "Dynamo",
    "build_guards": "guards",
    "create_aot_dispatcher_function": "AOTAutograd with the forward pass",
    "aot_joint_graph_passes": "passes on the joint graph",
    "_recursive_joint_graph_passes": "joint patterns",
    "_recursive_pre_grad_passes": "patterns before",
    "_recursive_post_grad_passes": "patterns after",
    "compile_fx.<locals>.fw_compiler_base": "Inductor, forward",
    "compile_fx.<locals>.bw_compiler": "Inductor, backward",
    "compile_fx_inner": "Inductor",
    "GraphLowering.run": "lowering",
    "Scheduler.__init__": "fusion",
    "Scheduler.codegen": "code",
    "PyCodeCache.load_by_key_path": "loading the code, with waiting",
    "async_compile.wait": "waiting for the processes",
    "async_compile.precompile": "kernels compiled one by one",
    "CachingAutotuner.benchmark_all_configs": "choosing among kernels",
    "CachingAutotuner.synchronize": "waiting for the device",
    "fx_graph_cache_save": "cache",
    "TritonBundler.collect": "cache, kernels",
}


@dataclass(frozen=True)
class Way:
    """A way to compile: its name in the tables, settings of Inductor, and whether its processes are started early."""

    title: str
    settings: tuple[tuple[str, Any], ...] = ()
    early: bool = True


WAYS = {
    "late": Way("started by the compilation", early=False),
    "ready": Way("ready before it"),
    "fewer": Way(
        "ready, and fewer kernels and patterns tried",
        (("triton.autotune_pointwise", False), ("pattern_matcher", False)),
    ),
    "again": Way("ready, with the cache of `ready`"),
}


def apply(way: Way, found: dict[str, Any]) -> None:
    """Set what a way sets; settings that this torch does not have are noted."""
    import torch._inductor.config as inductor

    for name, value in way.settings:
        owner = inductor.triton if name.startswith("triton.") else inductor
        if hasattr(owner, name.removeprefix("triton.")):
            setattr(owner, name.removeprefix("triton."), value)
        else:
            found.setdefault("unknown", []).append(name)


def make_model(given: argparse.Namespace, device: torch.device) -> ReIDModel:
    """The model of `no_flags.py`, or a tiny one."""
    name = "tiny" if given.quick else "clip_vit_b16"
    lines = [f"model.backbone.name={name}", "model.backbone.pretrained=none", "model.head=sdtps", *given.overrides]
    config: Config = override_config(Config(), lines)
    torch.manual_seed(0)
    size = (32, 16) if given.quick else (256, 128)
    return build_model(config.model, image_size=size, num_classes=171, num_cameras=4).to(device)


def watch_trials(found: dict[str, Any]) -> None:
    """Count the kernels that are tried on the device, and their seconds."""
    try:
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    except ImportError:
        return
    found |= {"tried": 0, "trying": 0.0, "choices": 0}
    whole, one = CachingAutotuner.autotune_to_one_config, CachingAutotuner.bench

    def choose(self: Any, *args: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        result = whole(self, *args, **options)
        found["trying"] += time.perf_counter() - begun
        found["choices"] += 1
        return result

    def bench(self: Any, *args: Any, **options: Any) -> Any:
        found["tried"] += 1
        return one(self, *args, **options)

    CachingAutotuner.autotune_to_one_config = choose  # type: ignore[method-assign]
    CachingAutotuner.bench = bench  # type: ignore[method-assign]


def phases() -> dict[str, float]:
    """Seconds of torch's own timers."""
    from torch._dynamo.utils import compilation_time_metrics

    return {name: sum(values) for name, values in compilation_time_metrics.items()}


def counts() -> dict[str, int]:
    """Graphs, and kernels that were compiled."""
    from torch._dynamo.utils import compilation_time_metrics, counters

    inductor = counters["inductor"]
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "kernels": inductor["async_compile_cache_miss"] - inductor["async_compile_cache_hit"],
        "one_by_one": len(compilation_time_metrics.get("async_compile.precompile", [])),
        "found": inductor["fxgraph_cache_hit"],
        "missed": inductor["fxgraph_cache_miss"],
    }


def timed_steps(model: ReIDModel, device: torch.device, *, training: bool, size: int, repeats: int) -> float:
    """Median milliseconds of the backbone, with the backward pass in training."""
    model.train(training)
    images = torch.zeros(size, NUM_MODALITIES, 3, *model.backbone.image_size, device=device)
    camera = torch.zeros(size, dtype=torch.int64, device=device)
    dtype = torch.bfloat16 if device.type == "cuda" else None
    seconds = []
    for _ in range(repeats + 3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        with torch.inference_mode(not training), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            tokens = model.backbone(images, camera=camera)
        if training:
            (tokens.cls.float().sum() + tokens.patches.float().sum()).backward()
            model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 1000 * statistics.median(seconds[3:])


def measure(way: str, given: argparse.Namespace) -> dict[str, Any]:
    """One compilation; in a process of its own."""
    folder = given.out / "cache" / ("ready" if way == "again" and "ready" in given.ways else way)
    if way != "again":
        shutil.rmtree(folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    device = torch.device("cuda" if torch.cuda.is_available() and not given.quick else "cpu")
    found: dict[str, Any] = {"way": way}
    if WAYS[way].early:  # else a setting would import what a run imports while it compiles
        apply(WAYS[way], found)
        start_compile_workers()
    started = time.perf_counter()
    accelerator = make_accelerator(device=device, precision="bf16" if device.type == "cuda" else "fp32")
    model = make_model(given, device)
    torch.zeros(8, 8, device=device) @ torch.zeros(8, 8, device=device)  # what a device needs once
    found["model"] = time.perf_counter() - started
    if WAYS[way].early:
        sys.modules["torch._inductor.async_compile"].AsyncCompile.wait_pool_ready()
        found["ready"] = time.perf_counter() - started
    begun = time.perf_counter()
    watch_trials(found)
    model.backbone.compile_blocks()
    with room_to_compile():
        _try_blocks(model, accelerator, {True: given.batch})
        found["training"] = time.perf_counter() - begun
        found["of_training"], middle = phases(), time.perf_counter()
        _try_blocks(model, accelerator, {False: given.evaluation_batch})
        found["evaluation"] = time.perf_counter() - middle
    found["total"] = time.perf_counter() - begun
    found["phases"] = phases()
    found |= counts()
    with room_to_compile():
        repeats = 2 if given.quick else 20
        found["step_ms"] = timed_steps(model, device, training=True, size=given.batch, repeats=repeats)
        found["evaluation_ms"] = timed_steps(
            model, device, training=False, size=given.evaluation_batch, repeats=repeats
        )
    return found


def child(way: str, given: argparse.Namespace) -> None:
    """Measure, and write what was found."""
    try:
        found = measure(way, given)
    except Exception:
        found = {"way": way, "fault": traceback.format_exc()}
    (given.out / f"{way}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if "torch._inductor.async_compile" in sys.modules:
        sys.modules["torch._inductor.async_compile"].shutdown_compile_workers()


def in_a_process(context: Any, way: str, given: argparse.Namespace) -> dict[str, Any]:
    """What one process found."""
    file = given.out / f"{way}.json"
    file.unlink(missing_ok=True)
    process = context.Process(target=child, args=(way, given))
    process.start()
    process.join()
    found: dict[str, Any] = {"way": way, "fault": "the process ended"}
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else found


def report(rows: list[dict[str, Any]]) -> None:
    """The tables, as Markdown."""
    columns = ("way", "total", "training", "evaluation", "until ready", "graphs")
    columns = (*columns, "kernels", "one by one", "tries", "trying")
    print(f"| {' | '.join((*columns, 'step, ms', 'evaluation, ms'))} |\n|---{'|---:' * 11}|")
    good = [row for row in rows if "fault" not in row]
    for row in good:
        shown = [f"{row[name]:.1f}" for name in ("total", "training", "evaluation")]
        shown += [f"{row['ready']:.1f}" if "ready" in row else "", str(row["graphs"]), str(row["kernels"])]
        shown += [str(row["one_by_one"]), str(row.get("tried", 0)), f"{row.get('trying', 0.0):.1f}"]
        shown += [f"{row['step_ms']:.1f}", f"{row['evaluation_ms']:.1f}"]
        print(f"| {WAYS[row['way']].title} | {' | '.join(shown)} |")
    names = sorted({name for row in good for name, value in row["phases"].items() if value >= 0.2})
    names.sort(key=lambda name: -max(row["phases"].get(name, 0.0) for row in good))
    print(f"\n| seconds in | {' | '.join(row['way'] for row in good)} |\n|---{'|---:' * len(good)}|")
    for name in names:
        shown = [f"{row['phases'].get(name, 0.0):.1f}" for row in good]
        print(f"| {name}{f' ({PHASES[name]})' if name in PHASES else ''} | {' | '.join(shown)} |")
    for row in rows:
        if "unknown" in row:
            print(f"{row['way']}: this torch has no setting {', '.join(row['unknown'])}")
        if "fault" in row:
            print(f"{row['way']} failed:\n{row['fault']}")


def main() -> None:
    """Measure the ways in turn, the most important first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings, such as model.head=none")
    parser.add_argument("--out", type=Path, default=Path("runs/cold_compile"))
    parser.add_argument("--ways", default="late,ready,fewer", help=f"in this order, of {', '.join(WAYS)}")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--evaluation-batch", type=int, default=16)
    parser.add_argument("--limit", type=float, default=85, help="seconds after which no further way is begun")
    parser.add_argument("--quick", action="store_true", help="a tiny model on the CPU")
    given = parser.parse_args()
    given.ways = given.ways.split(",")
    given.out = given.out.absolute()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.quick:
        given.batch, given.evaluation_batch = 4, 2
    begun, rows = time.perf_counter(), []
    context = multiprocessing.get_context("fork")  # torch is imported once, and the device was not used here
    for way in given.ways:
        if time.perf_counter() - begun > given.limit:
            print(f"{way}: not measured, {given.limit:.0f} s are over")
            continue
        row = in_a_process(context, way, given)
        if "CUDA" in row.get("fault", "") and context.get_start_method() == "fork":
            context = multiprocessing.get_context("spawn")  # an import had used the device
            row = in_a_process(context, way, given)
        rows.append(row)
        print(f"{way}: {time.perf_counter() - begun:.0f} s since the start", flush=True)
    shutil.rmtree(given.out / "cache", ignore_errors=True)
    report(rows)


if __name__ == "__main__":
    with guarded():
        main()
