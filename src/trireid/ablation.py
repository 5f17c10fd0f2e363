"""Grids of runs: every cell trained and evaluated over several seeds, resumable, with mean and spread."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from trireid.config.load import load_config
from trireid.config.read import read_mapping
from trireid.config.schema import Config
from trireid.errors import ConfigError, RunError
from trireid.files import file_name, locked, write_text, writing
from trireid.train.run_files import CONFIG_FILE, METRICS_FILE, RunMetrics
from trireid.typed_json import JsonObject

FIGURES = ("mAP", "mINP", "rank1")
TABLE_FILES = ("table.md", "table.json")


@dataclass(frozen=True)
class Cell:
    """One row of the table: a name and the settings that make it."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One run of a cell with one seed."""

    cell: Cell
    seed: int
    folder: Path

    @property
    def is_finished(self) -> bool:
        """Whether there are figures, which a run writes last."""
        return (self.folder / METRICS_FILE).is_file()


def vary_cells(vary: Sequence[str]) -> list[Cell]:
    """The grid of `key=v1,v2` lists: every combination is a cell. Commas within brackets do not split.

    Raises:
        ConfigError: an entry that is not `key=v1,v2,...`.
    """
    axes = []
    for entry in vary:
        key, sign, values = entry.partition("=")
        choices = _split(values)
        if not sign or not key or not all(choices):
            raise ConfigError(f"--vary {entry!r} is not key=v1,v2,...: for example model.head=none,sdtps")
        axes.append([f"{key}={choice}" for choice in choices])
    return [Cell(", ".join(_short(o) for o in combination), combination) for combination in itertools.product(*axes)]


def file_cells(path: Path) -> list[Cell]:
    """Cells of a YAML file: `name: [key=value, ...]`.

    Raises:
        ConfigError: a value that is not a list of overrides.
    """
    cells = []
    for name, overrides in read_mapping(path).items():
        if not isinstance(overrides, list) or not all(isinstance(entry, str) for entry in overrides):
            raise ConfigError(f"{path}: {name} must be a list of key=value texts, for example [model.head=none]")
        cells.append(Cell(str(name), tuple(overrides)))
    return cells


def plan(config_path: Path, cells: Sequence[Cell], *, overrides: Sequence[str], seeds: int, out: Path) -> list[Job]:
    """All runs, every one of which has a valid configuration; seeds are 1 to `seeds`.

    Raises:
        ConfigError: a setting of some cell is wrong, two cells have one name or the same settings, a cell sets what
            the grid sets, or there is no cell or seed.
        RunError: the figures of a finished run are damaged.
    """
    if not cells or seeds < 1:
        raise ConfigError(f"an ablation needs at least one cell and one seed; {len(cells)} cells, {seeds} seeds given")
    names = [_folder_name(cell.name) for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two cells of the ablation have the same name, {', '.join(twice)}: every cell needs its own")
    _check_cells(config_path, cells, overrides)
    jobs = [
        Job(cell, seed, out / name / f"seed{seed}")
        for seed in range(1, seeds + 1)
        for cell, name in zip(cells, names, strict=True)
    ]
    for job in jobs:
        wanted = load_config(config_path, job_settings(job, overrides))
        made = job.folder / CONFIG_FILE
        if job.is_finished:
            _figures(job)  # before hours of the others, where they are damaged
            if made.is_file() and load_config(made) != wanted:
                raise ConfigError(
                    f"{job.folder} was made with other settings: give another --out, or remove that folder"
                )
    return jobs


def _check_cells(config_path: Path, cells: Sequence[Cell], overrides: Sequence[str]) -> None:
    """Refuse cells that set what the grid sets for each run, and two cells of one configuration.

    Raises:
        ConfigError: see above; or a setting is wrong.
    """
    own = load_config(config_path)
    seen: dict[str, str] = {}
    for cell in cells:
        config = cell_config(config_path, cell, overrides)
        if config.train.seed != own.train.seed:
            raise ConfigError(
                f"{cell.name}: train.seed is set by the ablation itself, 1 to the number of --seeds: leave it out"
            )
        if config.output != own.output:
            raise ConfigError(
                f"{cell.name}: output is set by the ablation itself, a folder of each run below --out: leave it out"
            )
        other = seen.setdefault(config.model_dump_json(), cell.name)
        if other != cell.name:
            raise ConfigError(f"{other} and {cell.name} are the same settings: the table would show one run twice")


def job_settings(job: Job, overrides: Sequence[str]) -> list[str]:
    """All changes to the common configuration that make this run."""
    return [*overrides, *job.cell.overrides, f"train.seed={job.seed}", f"output={job.folder}"]


def run_jobs(
    jobs: Sequence[Job],
    *,
    config_path: Path,
    overrides: Sequence[str],
    parallel: int = 1,
    devices: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Job, str]]:
    """Run what has no metrics.json yet, each in a process of its own; a started run is resumed.

    Args:
        jobs: from `plan`.
        config_path: the common configuration.
        overrides: common changes, before those of the cell.
        parallel: processes at a time.
        devices: CUDA devices as CUDA_VISIBLE_DEVICES names them, over which the processes are spread; empty leaves
            the environment as it is.
        progress: called with (finished, all).

    Returns:
        the jobs that failed, each with the last line it said; the others are complete.
    """
    waiting = [job for job in jobs if not job.is_finished]
    places = list(range(parallel))  # free ones; a run that ends frees its own for the next
    running: dict[subprocess.Popen[bytes], _Running] = {}
    failed: list[tuple[Job, str]] = []
    done = len(jobs) - len(waiting)
    with _ended_with_this_one(running):
        while waiting or running:
            while waiting and places:
                job, place = waiting.pop(0), places.pop(0)
                device = devices[place % len(devices)] if devices else None
                said = _log_file(job).stat().st_size if _log_file(job).exists() else 0
                process = _start(job, config_path, overrides, parallel=parallel, device=device)
                running[process] = _Running(job, place, said)
            time.sleep(0.2)
            for process in [each for each in running if each.poll() is not None]:
                ended = running.pop(process)
                places.append(ended.place)
                done += 1
                if process.returncode != 0:
                    failed.append((ended.job, _last_line(ended) or f"exit code {process.returncode}"))
            if progress is not None:
                progress(done, len(jobs))
    return failed


@dataclass(frozen=True)
class _Running:
    """A started job, the place that it takes, and the bytes that others had written to its log before."""

    job: Job
    place: int
    said: int


@contextmanager
def only_ablation(out: Path) -> Iterator[None]:
    """Keep other ablations out of a folder, which is made, while the block runs.

    Raises:
        RunError: Another one is running in it, or it cannot be made.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out, taken=f"another ablation is running in {out}: wait for its end, or give another --out"):
        yield


@contextmanager
def _ended_with_this_one(running: Mapping[subprocess.Popen[bytes], object]) -> Iterator[None]:
    """End what still runs when this process stops, on SIGTERM (of `kill`, of a scheduler) as well.

    A run that went on alone would write into the folder in which the next call resumes it.
    """
    in_main = threading.current_thread() is threading.main_thread()  # no other may set a handler
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number)) if in_main else None
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def visible_devices() -> list[str]:
    """The CUDA devices of this process as CUDA_VISIBLE_DEVICES names them, found without starting CUDA here."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device for device in named.split(",") if device]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _start(
    job: Job, config_path: Path, overrides: Sequence[str], *, parallel: int, device: str | None
) -> subprocess.Popen[bytes]:
    started = (job.folder / CONFIG_FILE).is_file()
    settings = job_settings(job, overrides)
    command = [sys.executable, "-m", "trireid", "train", "--config", str(config_path), *settings]
    environment = dict(os.environ)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    if parallel > 1:
        # Threads of several runs that wait for each other on the same cores cost more than they bring.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // parallel)))
    log = _log_file(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        return subprocess.Popen(
            [*command, "--resume"] if started else command, stdout=stream, stderr=stream, env=environment
        )


def _log_file(job: Job) -> Path:
    return job.folder.with_suffix(".log")


def _last_line(ended: _Running) -> str:
    """The last line that a process wrote to its log; an earlier one may have written there before."""
    with _log_file(ended.job).open("rb") as log:
        log.seek(ended.said)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _figures(job: Job) -> RunMetrics:
    """The figures of a finished job.

    Raises:
        RunError: They are damaged.
    """
    from trireid.train.runs import read_metrics  # takes seconds to import

    metrics = read_metrics(job.folder)
    assert metrics is not None, "asked of finished jobs alone"
    return metrics


def collect(jobs: Sequence[Job], *, costs: Mapping[str, Mapping[str, Any]] | None = None) -> JsonObject:
    """Figures of all finished cells by cell, checkpoint (`last`; `best` where a validation split chose it) and feature.

    Args:
        jobs: from `plan`; those without metrics.json are left out and counted.
        costs: by cell name, for example `{"gmac": ..., "throughput": ...}`.

    Returns:
        `{"cells": {name: {"overrides", "seeds", "cost", "last": {feature: {figure: [values]}}, "best": ...}},
        "missing": n}`, figures in [0, 1].
    """
    table: JsonObject = {"cells": {}, "missing": 0}
    for job in jobs:
        if not job.is_finished:
            table["missing"] += 1
            continue
        metrics = _figures(job)
        row = table["cells"].setdefault(
            job.cell.name,
            {"overrides": list(job.cell.overrides), "seeds": [], "cost": dict((costs or {}).get(job.cell.name, {}))},
        )
        row["seeds"].append(job.seed)
        checkpoints = {"last": metrics["feature"]}
        best = metrics.get("best")
        if best is not None and best["chosen_on"] == "validation":
            checkpoints["best"] = best["feature"]
        for checkpoint, features in checkpoints.items():
            for feature, figures in features.items():
                for figure in FIGURES:
                    values = row.setdefault(checkpoint, {}).setdefault(feature, {}).setdefault(figure, [])
                    values += [figures[figure]] if figure in figures else []
    return table


def markdown(table: Mapping[str, Any]) -> str:
    """The table as Markdown, figures in percent, mean and standard deviation over seeds."""
    cells = table["cells"]
    if not cells:
        raise RunError("no cell of the ablation has finished: there is nothing to show; read the .log files beside it")
    cost_names = sorted({name for row in cells.values() for name in row["cost"]})
    header = ["cell", "seeds", "checkpoint", "feature", *FIGURES, *cost_names]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, row in cells.items():
        for checkpoint in ("last", "best"):
            for feature, figures in row.get(checkpoint, {}).items():
                spread = [_mean_and_spread(figures[figure]) for figure in FIGURES]
                cost = [f"{row['cost'][key]:.3g}" if key in row["cost"] else "" for key in cost_names]
                lines.append(
                    "| " + " | ".join([name, str(len(row["seeds"])), checkpoint, feature, *spread, *cost]) + " |"
                )
    return "\n".join(lines) + "\n"


def write_table(table: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Write `table.md` and `table.json` into the folder of the ablation."""
    files = out / TABLE_FILES[0], out / TABLE_FILES[1]
    write_text(files[0], markdown(table))
    write_text(files[1], json.dumps(table, indent=1))
    return files


def _mean_and_spread(values: Sequence[float]) -> str:
    percent = [100 * value for value in values if not math.isnan(value)]
    if len(percent) < 2:
        return f"{percent[0]:.1f}" if percent else "-"
    return f"{mean(percent):.1f} ± {stdev(percent):.1f}"


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key.rsplit('.', 1)[-1]}={value}"


def _folder_name(name: str) -> str:
    """The folder of a cell below that of the ablation."""
    slug = re.sub(r"[^A-Za-z0-9._=-]+", "_", name).strip("_")
    # Plain names have the folders that ablations of version 0.1.0 made, so that these are completed. Those that would
    # lose their letters, be hidden, lead elsewhere or be the table itself have a name of their own.
    if not name.isascii() or not slug or slug[0] == "." or slug in TABLE_FILES:
        return file_name(f"cell {name}")
    # Long names are cut; what tells them apart may stand behind the cut.
    return slug if len(slug) <= 100 else f"{slug[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _split(values: str) -> list[str]:
    """Parts between the commas that stand outside of brackets."""
    parts, depth = [""], 0
    for character in values:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def cell_config(config_path: Path, cell: Cell, overrides: Sequence[str]) -> Config:
    """The configuration of a cell, for what can be measured without training."""
    return load_config(config_path, [*overrides, *cell.overrides])
