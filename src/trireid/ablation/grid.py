"""The cells of an ablation and the runs that they need."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trireid.config.load import load_config
from trireid.config.read import read_mapping
from trireid.config.schema import Config
from trireid.errors import ConfigError
from trireid.files import file_name
from trireid.train.run_files import CONFIG_FILE, METRICS_FILE, RunMetrics

TABLE_FILES = ("table.md", "table.json")


@dataclass(frozen=True)
class Cell:
    """One combination of settings in a grid: its name in the table, and the settings."""

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
        """Whether the run has written its metrics, which it does at its end."""
        return (self.folder / METRICS_FILE).is_file()


def vary_cells(vary: Sequence[str]) -> list[Cell]:
    """The cells of a grid, one per combination of the values. Commas within brackets separate no values.

    Raises:
        ConfigError: an entry is not `key=v1,v2,...`.

    Example:
        >>> [cell.name for cell in vary_cells(["model.head=none,sdtps", "train.lr=0.1"])]
        ['head=none, lr=0.1', 'head=sdtps, lr=0.1']
    """
    axes = []
    for entry in vary:
        key, sign, values = entry.partition("=")
        choices = _split(values)
        if not sign or not key or not all(choices):
            raise ConfigError(f"--vary {entry!r} is not of the form key=v1,v2,..., for example model.head=none,sdtps")
        axes.append([f"{key}={choice}" for choice in choices])
    return [Cell(", ".join(_short(o) for o in combination), combination) for combination in itertools.product(*axes)]


def file_cells(path: Path) -> list[Cell]:
    """Cells of a YAML file: `name: [key=value, ...]`.

    Raises:
        ConfigError: the value of a cell is not a list of settings.
    """
    cells = []
    for name, overrides in read_mapping(path).items():
        if not isinstance(overrides, list) or not all(isinstance(entry, str) for entry in overrides):
            raise ConfigError(f"{path}: {name} must be a list of key=value settings, for example [model.head=none]")
        cells.append(Cell(str(name), tuple(overrides)))
    return cells


def plan(config_path: Path, cells: Sequence[Cell], *, overrides: Sequence[str], seeds: int, out: Path) -> list[Job]:
    """All runs of a grid, with seeds 1 to `seeds`; the configuration of each is checked.

    Raises:
        ConfigError: a setting of a cell is wrong, two cells have the same name or the same settings, a cell sets the
            seed or the output folder, or there is no cell or no seed.
        RunError: the metrics.json of a finished run is damaged.
    """
    if not cells or seeds < 1:
        raise ConfigError(
            f"an ablation needs at least one cell and one seed, given {len(cells)} cells and {seeds} seeds"
        )
    names = [cell_folder(cell.name) for cell in cells]
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
        config = load_config(config_path, job_settings(job, overrides))
        made = job.folder / CONFIG_FILE
        if job.is_finished:
            finished_metrics(job)  # a damaged file is reported now, not after hours of other runs
            if made.is_file() and load_config(made) != config:
                raise ConfigError(
                    f"{job.folder} was made with other settings: give another --out, or remove that folder"
                )
    return jobs


def _check_cells(config_path: Path, cells: Sequence[Cell], overrides: Sequence[str]) -> None:
    """Refuse cells that set the seed or the output folder, and two cells with the same configuration.

    Raises:
        ConfigError: a cell is refused, or a setting is wrong.
    """
    own = load_config(config_path)
    seen: dict[str, str] = {}
    for cell in cells:
        config = cell_config(config_path, cell, overrides)
        if config.train.seed != own.train.seed:
            raise ConfigError(
                f"{cell.name}: the ablation sets train.seed itself, 1 to the number of --seeds: leave it out"
            )
        if config.output != own.output:
            raise ConfigError(
                f"{cell.name}: the ablation sets output itself, one folder per run below --out: leave it out"
            )
        other = seen.setdefault(config.model_dump_json(), cell.name)
        if other != cell.name:
            raise ConfigError(
                f"{other} and {cell.name} have the same settings: the table would show the same run twice"
            )


def cell_config(config_path: Path, cell: Cell, overrides: Sequence[str]) -> Config:
    """The configuration of a cell, without a seed or an output folder of its own."""
    return load_config(config_path, [*overrides, *cell.overrides])


def job_settings(job: Job, overrides: Sequence[str]) -> list[str]:
    """All changes to the common configuration for this run."""
    return [*overrides, *job.cell.overrides, f"train.seed={job.seed}", f"output={job.folder}"]


def finished_metrics(job: Job) -> RunMetrics:
    """The content of metrics.json of a finished job.

    Raises:
        RunError: it is damaged.
    """
    from trireid.train.runs import read_metrics  # takes seconds to import

    metrics = read_metrics(job.folder)
    assert metrics is not None, "a finished job has a metrics.json"
    return metrics


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key.rsplit('.', 1)[-1]}={value}"


def cell_folder(name: str) -> str:
    """The name of a cell's folder."""
    slug = re.sub(r"[^A-Za-z0-9._=-]+", "_", name).strip("_")
    # Plain names keep the folders of version 0.1.0, so that its ablations can be completed. Names that would lose their
    # letters, be hidden, leave the folder or collide with the table are encoded.
    if not name.isascii() or not slug or slug[0] == "." or slug in TABLE_FILES:
        return file_name(f"cell {name}")
    # Long names are cut, and a hash keeps them apart.
    return slug if len(slug) <= 100 else f"{slug[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _split(values: str) -> list[str]:
    """Parts between the commas outside of brackets."""
    parts, depth = [""], 0
    for character in values:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
