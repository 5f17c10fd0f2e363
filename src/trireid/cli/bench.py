"""`trireid bench`: what models cost, side by side in one process."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from trireid import benchmark
from trireid.benchmark import inference_step
from trireid.cli.console import progress, say, show_table
from trireid.config.load import load_config
from trireid.config.schema import Config
from trireid.errors import ConfigError
from trireid.files import check_own, write_json
from trireid.models.build import build_model
from trireid.models.compiling import room_to_compile
from trireid.models.low_precision import is_float8, use_float8
from trireid.models.recorded import RecordedModel
from trireid.models.reid import ReIDModel
from trireid.train.device import autocast_dtype, resolve_device, resolve_inference_precision, resolve_precision
from trireid.train.recording import WARM_UP
from trireid.typed_json import read_object
from trireid.types import NUM_MODALITIES

NUM_CLASSES = 171  # RGBNT201's training identities; the classifier's share of the cost is negligible


def run(
    configs: Sequence[Path],
    *,
    overrides: Sequence[str],
    vary: Sequence[str],
    cells_file: Path | None,
    modes: Sequence[str],
    batch_size: int | None,
    repeats: int,
    warmup: int,
    compile_models: bool,
    record: bool,
    precisions: Sequence[str],
    callables: Sequence[str],
    out: Path | None,
) -> None:
    """Measure, print a table, and write it as JSON. Shares are those of a matrix product in the first one's precision.

    Raises:
        ConfigError: a setting is wrong, or a callable cannot be found.
    """
    if out is not None:
        check_own(
            out, kind="result of trireid bench", is_own=lambda path: {"machine", "rows"} <= read_object(path).keys()
        )
    named, precision_of = _in_precisions(
        _named(configs, overrides=overrides, vary=vary, cells_file=cells_file), precisions, modes=modes
    )
    first = next(iter(named.values()))
    device = resolve_device(first.train.device)
    dtype = autocast_dtype(resolve_precision(first.train.precision, device)) or torch.float32
    rate = benchmark.matrix_rate(device, dtype=dtype)
    with progress("measuring") as bar:
        rows = measure(
            named,
            modes=modes,
            batch_size=batch_size,
            repeats=repeats,
            warmup=warmup,
            compile_models=compile_models,
            record=record,
            precisions=precision_of,
            callables=callables,
            rate=rate,
            progress=bar.reach,
        )
    machine = {**benchmark.describe_machine(device), "matrix_tflops": None if rate is None else rate / 1e12}
    product = "" if rate is None else f", matrix product {rate / 1e12:.0f} TFLOP/s"
    title = f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}{product}"
    show_table(title, _HEADER, _cells(rows))
    if out is not None:
        write_json(out, {"machine": machine, "rows": rows})
        say(f"written: {out}")
    else:
        say(json.dumps(machine))


def _named(
    configs: Sequence[Path], *, overrides: Sequence[str], vary: Sequence[str], cells_file: Path | None
) -> dict[str, Config]:
    """The configurations of all files and cells, by the names of their rows."""
    from trireid.ablation import cell_config, file_cells, vary_cells

    if vary and cells_file is not None:
        raise ConfigError("give --vary key=v1,v2 or --cells FILE, not both")
    cells = vary_cells(vary) if vary else file_cells(cells_file) if cells_file is not None else []
    named: dict[str, Config] = {}
    stems = [path.stem for path in configs]
    for path in configs:
        label = path.stem if stems.count(path.stem) == 1 else str(path)
        if not cells:
            named[label] = load_config(path, overrides)
        for cell in cells:
            named[f"{label}: {cell.name}"] = cell_config(path, cell, overrides)
    return named


def _in_precisions(
    configs: dict[str, Config], precisions: Sequence[str], *, modes: Sequence[str]
) -> tuple[dict[str, Config], dict[str, str]]:
    """Every configuration once for each precision, and the precision by its name there."""
    if not precisions:
        return configs, {}
    if set(modes) != {"inference"}:
        raise ConfigError("--precision is that of inference: give --mode inference with it")
    pairs = [(f"{name}, {each}", config, each) for name, config in configs.items() for each in precisions]
    return {name: config for name, config, _ in pairs}, {name: each for name, _, each in pairs}


def measure(
    configs: Mapping[str, Config],
    *,
    modes: Sequence[str],
    repeats: int,
    warmup: int,
    batch_size: int | None = None,
    compile_models: bool = False,
    record: bool = False,
    precisions: Mapping[str, str] = MappingProxyType({}),
    callables: Sequence[str] = (),
    rate: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[benchmark.CostRow]:
    """Rows of `benchmark.as_rows` for every configuration and mode, timed in turn.

    Args:
        configs: by name, all on one device, each in its own precision; callables use the image size and
            precision of the first.
        modes: of `inference`, `training`.
        repeats, warmup: batches; compiled models need a warm-up of at least 1, since the first batch compiles.
        batch_size: triplets per batch; None: evaluate.batch_size (inference) or data.batch_size of each configuration.
        compile_models: time models with compiled blocks, as `train.compile` makes them.
        record: time replays of CUDA graphs, as `train.cuda_graph` makes them for training.
        precisions: of inference, by name, where it is another than the configuration's; `fp8` is calibrated by the
            random images that are timed.
        callables: `package.module:factory`; the factory takes image_size and device and returns a function of images.
            On a GPU it is called twice, the first time to measure the memory of what it makes.
        rate: operations per second of a matrix product on the device, see `benchmark.matrix_rate`.
        progress: called with (rounds done, all rounds).

    Raises:
        ConfigError: the devices differ or do not have a precision, a compiled model would be timed without a warm-up,
            a callable cannot be found, or a model does not fit on the device.
    """
    device = _checked_device(configs, warmup=warmup, compile_models=compile_models, record=record)
    models = {name: _model(config) for name, config in configs.items()}
    own = partial(_own, batch_size=batch_size, device=device, compiled=compile_models, record=record)
    candidates = [
        own(name, models[name], config, mode, precision=precisions.get(name))
        for mode in modes
        for name, config in configs.items()
    ]
    if "inference" in modes:
        first = next(iter(configs.values()))
        candidates += [_callable(spec, first, batch_size=batch_size, device=device) for spec in callables]
    # Here each model is alone on the device; while they are timed, all of them are on it.
    macs = {name: _macs(model, configs[name], device) for name, model in models.items()}
    costs = []
    with room_to_compile(len(candidates)) if compile_models else nullcontext():
        memory = [_memory_alone(candidate, device) for candidate in candidates]
        for mode in modes:
            chosen = [(each, peak) for each, peak in zip(candidates, memory, strict=True) if each.mode == mode]
            steps = {each.name: _ready(each) for each, _ in chosen}
            seconds = benchmark.time_steps(steps, device=device, repeats=repeats, warmup=warmup, progress=progress)
            del steps  # frees the device before the next mode
            costs += [_cost(each, seconds[each.name], macs=macs.get(each.name), memory=peak) for each, peak in chosen]
    return benchmark.as_rows(costs, rate=rate)


def _checked_device(configs: Mapping[str, Config], *, warmup: int, compile_models: bool, record: bool) -> torch.device:
    """The device that all configurations are measured on.

    Raises:
        ConfigError: they name several, or a compiled or recorded model would be timed without its warm-up.
    """
    if compile_models and warmup < 1:
        raise ConfigError(
            f"--warmup is {warmup} with --compile: the first batch compiles the model; give --warmup 1 or more so that "
            "it is not timed"
        )
    if len({config.train.device for config in configs.values()}) > 1:
        raise ConfigError("train.device differs between the configurations: one call measures on one device")
    device = resolve_device(next(iter(configs.values())).train.device)
    if record and (device.type != "cuda" or warmup <= WARM_UP):
        raise ConfigError(
            f"--cuda-graph needs a CUDA device and --warmup {WARM_UP + 1} or more; given are {device.type} and {warmup}"
        )
    return device


@dataclass(frozen=True)
class _Candidate:
    """What is measured in one mode.

    Attributes:
        name: of the row; mode: `inference` or `training`; batch_size: triplets per batch.
        make: puts model and images on the device and returns the step.
        model: on the CPU until it is measured; None for a user's callable.
    """

    name: str
    mode: str
    batch_size: int
    make: Callable[[], benchmark.Step]
    model: nn.Module | None


def _own(
    name: str,
    model: ReIDModel,
    config: Config,
    mode: str,
    *,
    precision: str | None,
    batch_size: int | None,
    device: torch.device,
    compiled: bool,
    record: bool,
) -> _Candidate:
    chosen = resolve_inference_precision(precision or config.train.precision, device)
    dtype = autocast_dtype(chosen)
    size = batch_size or (config.evaluate.batch_size if mode == "inference" else config.data.batch_size)

    def make() -> benchmark.Step:
        model.to(device)
        images = torch.randn(size, NUM_MODALITIES, 3, *config.data.image_size, device=device)
        if chosen == "fp8" and not is_float8(model.backbone.vit):
            use_float8(model.eval().backbone.vit, inference_step(model, images, dtype=dtype))
        if compiled:
            model.backbone.compile_blocks(cuts=True)
        if mode == "inference":
            runner = RecordedModel(model, dtype=dtype) if record else _evaluating(model)
            return inference_step(runner, images, dtype=dtype)
        return benchmark.training_step(model, images, num_classes=NUM_CLASSES, dtype=dtype, recorded=record)

    return _Candidate(name, mode, size, make, model)


def _callable(spec: str, config: Config, *, batch_size: int | None, device: torch.device) -> _Candidate:
    factory = _factory(spec)
    dtype = autocast_dtype(resolve_precision(config.train.precision, device))
    size = batch_size or config.evaluate.batch_size

    def make() -> benchmark.Step:
        images = torch.randn(size, NUM_MODALITIES, 3, *config.data.image_size, device=device)
        return benchmark.inference_step(factory(image_size=config.data.image_size, device=device), images, dtype=dtype)

    return _Candidate(spec, "inference", size, make, None)


def _cost(candidate: _Candidate, seconds: Sequence[float], *, macs: int | None, memory: int | None) -> benchmark.Cost:
    parameters = None if candidate.model is None else sum(p.numel() for p in candidate.model.parameters())
    return benchmark.summarise(
        candidate.name,
        candidate.mode,
        seconds,
        batch_size=candidate.batch_size,
        parameters=parameters,
        macs=macs,
        memory=memory,
    )


def _macs(model: nn.Module, config: Config, device: torch.device) -> int:
    macs = benchmark.model_macs(model.to(device), image_size=config.data.image_size, device=device)
    model.cpu()
    return macs


def _memory_alone(candidate: _Candidate, device: torch.device) -> int | None:
    peak = benchmark.peak_memory(lambda: _ready(candidate), device=device)
    if candidate.model is not None:
        candidate.model.cpu()
    return peak


def _ready(candidate: _Candidate) -> benchmark.Step:
    """The step; its error names the candidate if the device has too little memory for it."""
    name, mode, size = candidate.name, candidate.mode, candidate.batch_size
    with benchmark.naming_out_of_memory(name, mode, batch_size=size):
        step = candidate.make()

    def named() -> object:
        with benchmark.naming_out_of_memory(name, mode, batch_size=size):
            return step()

    return named


def _model(config: Config) -> ReIDModel:
    # The cost does not depend on the weights, so none are loaded.
    return build_model(
        config.model,
        image_size=config.data.image_size,
        num_classes=NUM_CLASSES,
        num_cameras=4,
        load_pretrained=False,
    )


def _evaluating(model: nn.Module) -> Callable[[torch.Tensor], object]:
    def call(images: torch.Tensor) -> object:
        model.eval()
        return model(images)

    return call


def _factory(spec: str) -> Callable[..., Callable[[torch.Tensor], object]]:
    module, sign, name = spec.partition(":")
    if not sign:
        raise ConfigError(f"--callable {spec!r}: give package.module:factory, the function that makes your model")
    if "" not in sys.path:
        sys.path.insert(
            0, ""
        )  # the current folder, which `python -m trireid` has on its path and the console script not
    try:
        factory: Callable[..., Callable[[torch.Tensor], object]] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--callable {spec!r} cannot be imported: {error}") from error
    if not callable(factory):
        raise ConfigError(
            f"--callable {spec!r} is of type {type(factory).__name__}; give a function of image_size and device"
        )
    return factory


def _operations(row: benchmark.CostRow) -> str:
    if row["tflops"] is None:
        return "-"
    share = "" if row["matrix_share"] is None else f" ({100 * row['matrix_share']:.0f} %)"
    return f"{row['tflops']:.3g}{share}"


_HEADER = [
    "model",
    "mode",
    "batch",
    "parameters M",
    "GMAC",
    "ms per batch",
    "quartiles",
    "triplets/s",
    "relative",
    "TFLOP/s",
    "peak GiB",
]


def _cells(rows: Sequence[benchmark.CostRow]) -> list[list[str]]:
    return [
        [
            row["name"],
            row["mode"],
            str(row["batch_size"]),
            "-" if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f}",
            "-" if row["gmac"] is None else f"{row['gmac']:.3f}",
            f"{1e3 * row['latency']:.1f}",
            f"{1e3 * row['latency_low']:.1f}-{1e3 * row['latency_high']:.1f}",
            f"{row['throughput']:.0f}",
            f"{row['relative_throughput']:.2f}x",
            _operations(row),
            "-" if row["peak_memory"] is None else f"{row['peak_memory'] / 2**30:.2f}",
        ]
        for row in rows
    ]
