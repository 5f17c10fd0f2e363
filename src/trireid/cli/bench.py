"""`trireid bench`: what models cost, side by side in one process."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trireid import benchmark
from trireid.cli.console import progress, say, show_table
from trireid.config.load import load_config
from trireid.config.schema import Config
from trireid.errors import ConfigError
from trireid.files import write_json
from trireid.models.build import build_model
from trireid.train.device import autocast_dtype, resolve_device, resolve_precision
from trireid.types import NUM_MODALITIES

NUM_CLASSES = 171  # RGBNT201's training identities; the classifier's share of the cost is negligible


def run(
    configs: Sequence[Path],
    *,
    overrides: Sequence[str],
    vary: Sequence[str],
    modes: Sequence[str],
    batch_size: int | None,
    repeats: int,
    warmup: int,
    compile_models: bool,
    callables: Sequence[str],
    out: Path | None,
) -> None:
    """Measure, print a table, and write it as JSON.

    Raises:
        ConfigError: a setting is wrong, or a callable cannot be found.
    """
    from trireid.ablation import vary_cells

    cells = vary_cells(vary) if vary else []
    named: dict[str, Config] = {}
    stems = [path.stem for path in configs]
    for path in configs:
        label = path.stem if stems.count(path.stem) == 1 else str(path)
        if not cells:
            named[label] = load_config(path, overrides)
        for cell in cells:
            named[f"{label}: {cell.name}"] = load_config(path, [*overrides, *cell.overrides])
    with progress("measuring") as report:
        rows = measure(
            named,
            modes=modes,
            batch_size=batch_size,
            repeats=repeats,
            warmup=warmup,
            compile_models=compile_models,
            callables=callables,
            progress=report,
        )
    machine = benchmark.describe_machine(resolve_device(next(iter(named.values())).train.device))
    show_table(f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}", _HEADER, _cells(rows))
    if out is not None:
        write_json(out, {"machine": machine, "rows": rows})
        say(f"written: {out}")
    else:
        say(json.dumps(machine))


def measure(
    configs: Mapping[str, Config],
    *,
    modes: Sequence[str],
    repeats: int,
    warmup: int,
    batch_size: int | None = None,
    compile_models: bool = False,
    callables: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows of `benchmark.as_rows` for every configuration and mode, timed in turn.

    Args:
        configs: by name, all on one device, each in its own precision; the first one speaks for callables.
        modes: of `inference`, `training`.
        repeats, warmup: batches.
        batch_size: None takes evaluate.batch_size or data.batch_size of each configuration.
        compile_models: time `torch.compile`d models.
        callables: `package.module:factory`; the factory gets image_size and device and returns what takes images.
        progress: called with (done, all) rounds.
    """
    first = next(iter(configs.values()))
    if len({config.train.device for config in configs.values()}) > 1:
        raise ConfigError("train.device differs between the configurations: one call measures on one device")
    device = resolve_device(first.train.device)
    dtypes = {n: autocast_dtype(resolve_precision(c.train.precision, device)) for n, c in configs.items()}
    models = {name: _model(config, device) for name, config in configs.items()}
    macs = {
        name: benchmark.model_macs(model, image_size=configs[name].data.image_size, device=device)
        for name, model in models.items()
    }
    costs = []
    for mode in modes:
        steps: dict[str, benchmark.Step] = {}
        sizes: dict[str, int] = {}
        for name, model in models.items():
            config = configs[name]
            own = config.evaluate.batch_size if mode == "inference" else config.data.batch_size
            sizes[name] = batch_size or own
            images = torch.randn(sizes[name], NUM_MODALITIES, 3, *config.data.image_size, device=device)
            runner: Any = torch.compile(model) if compile_models else model
            steps[name] = (
                benchmark.inference_step(_evaluating(runner, model), images, dtype=dtypes[name])
                if mode == "inference"
                else benchmark.training_step(runner, images, num_classes=NUM_CLASSES, dtype=dtypes[name])
            )
        for spec in callables if mode == "inference" else ():
            sizes[spec] = batch_size or first.evaluate.batch_size
            images = torch.randn(sizes[spec], NUM_MODALITIES, 3, *first.data.image_size, device=device)
            foreign = _factory(spec)(image_size=first.data.image_size, device=device)
            steps[spec] = benchmark.inference_step(foreign, images, dtype=next(iter(dtypes.values())))
        seconds = benchmark.time_steps(steps, device=device, repeats=repeats, warmup=warmup, progress=progress)
        for name, step in steps.items():
            known = models.get(name)
            costs.append(
                benchmark.summarise(
                    name,
                    mode,
                    seconds[name],
                    batch_size=sizes[name],
                    parameters=sum(p.numel() for p in known.parameters()) if known is not None else 0,
                    macs=macs.get(name),
                    memory=benchmark.peak_memory(step, device=device),
                )
            )
    return benchmark.as_rows(costs)


def _model(config: Config, device: torch.device) -> nn.Module:
    # Cost does not depend on the weights, so none are loaded.
    return build_model(
        config.model,
        image_size=config.data.image_size,
        num_classes=NUM_CLASSES,
        num_cameras=4,
        load_pretrained=False,
    ).to(device)


def _evaluating(runner: Any, model: nn.Module) -> Callable[[torch.Tensor], object]:
    def call(images: torch.Tensor) -> object:
        model.eval()
        return runner(images)

    return call


def _factory(spec: str) -> Callable[..., Callable[[torch.Tensor], object]]:
    module, sign, name = spec.partition(":")
    if not sign:
        raise ConfigError(f"--callable {spec!r} is not package.module:factory")
    try:
        factory: Callable[..., Callable[[torch.Tensor], object]] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--callable {spec!r} cannot be imported: {error}") from error
    return factory


_HEADER = ["model", "mode", "parameters M", "GMAC", "ms a batch", "quartiles", "triplets/s", "relative", "peak GiB"]


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            row["name"],
            row["mode"],
            f"{row['parameters'] / 1e6:.2f}",
            "-" if row["gmac"] is None else f"{row['gmac']:.3f}",
            f"{1e3 * row['latency']:.1f}",
            f"{1e3 * row['latency_low']:.1f}-{1e3 * row['latency_high']:.1f}",
            f"{row['throughput']:.0f}",
            f"{row['relative_throughput']:.2f}x",
            "-" if row["peak_memory"] is None else f"{row['peak_memory'] / 2**30:.2f}",
        ]
        for row in rows
    ]
