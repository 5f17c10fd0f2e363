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
from trireid.files import write_text

FIGURES = ("mAP", "mINP", "rank1")


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
    def figures(self) -> Path:
        """The file that a run writes last."""
        return self.folder / "metrics.json"

    @property
    def is_finished(self) -> bool:
        """Whether there are figures."""
        return self.figures.is_file()


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
        ConfigError: a setting of some cell is wrong, two cells have one name, or there is no cell or seed.
    """
    if not cells or seeds < 1:
        raise ConfigError(f"an ablation needs at least one cell and one seed; {len(cells)} cells, {seeds} seeds given")
    names = [_slug(cell.name) for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two cells of the ablation have the same name, {', '.join(twice)}: every cell needs its own")
    jobs = [Job(cell, seed, out / _slug(cell.name) / f"seed{seed}") for seed in range(1, seeds + 1) for cell in cells]
    for job in jobs:
        wanted = load_config(config_path, job_settings(job, overrides))
        made = job.folder / "config.yaml"
        if job.is_finished and made.is_file() and load_config(made) != wanted:
            raise ConfigError(f"{job.folder} was made with other settings: give another --out, or remove that folder")
    return jobs


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
    running: dict[subprocess.Popen[bytes], tuple[Job, int]] = {}
    failed: list[tuple[Job, str]] = []
    done = len(jobs) - len(waiting)
    with _ended_with_this_one(running):
        while waiting or running:
            while waiting and places:
                job, place = waiting.pop(0), places.pop(0)
                device = devices[place % len(devices)] if devices else None
                running[_start(job, config_path, overrides, parallel=parallel, device=device)] = job, place
            time.sleep(0.2)
            for process in [each for each in running if each.poll() is not None]:
                job, place = running.pop(process)
                places.append(place)
                done += 1
                if process.returncode != 0:
                    failed.append((job, _last_line(_log_file(job)) or f"exit code {process.returncode}"))
            if progress is not None:
                progress(done, len(jobs))
    return failed


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
    started = (job.folder / "config.yaml").is_file()
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


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def collect(jobs: Sequence[Job], *, costs: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Figures of all finished cells by cell, checkpoint (`last`; `best` where a validation split chose it) and feature.

    Args:
        jobs: from `plan`; those without metrics.json are left out and counted.
        costs: by cell name, for example `{"gmac": ..., "throughput": ...}`.

    Returns:
        `{"cells": {name: {"overrides", "seeds", "cost", "last": {feature: {figure: [values]}}, "best": ...}},
        "missing": n}`, figures in [0, 1].
    """
    table: dict[str, Any] = {"cells": {}, "missing": 0}
    for job in jobs:
        if not job.is_finished:
            table["missing"] += 1
            continue
        metrics = json.loads(job.figures.read_text())
        row = table["cells"].setdefault(
            job.cell.name,
            {"overrides": list(job.cell.overrides), "seeds": [], "cost": dict((costs or {}).get(job.cell.name, {}))},
        )
        row["seeds"].append(job.seed)
        checkpoints = {"last": metrics["feature"]}
        if metrics.get("best", {}).get("chosen_on") == "validation":
            checkpoints["best"] = metrics["best"]["feature"]
        for checkpoint, features in checkpoints.items():
            for feature, figures in features.items():
                for figure in FIGURES:
                    values = row.setdefault(checkpoint, {}).setdefault(feature, {}).setdefault(figure, [])
                    values.append(figures[figure])
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
    files = out / "table.md", out / "table.json"
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


def _slug(name: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._=-]+", "_", name).strip("_")
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
