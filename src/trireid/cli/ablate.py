"""`trireid ablate`: a grid of runs over several seeds, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trireid.cli.console import note, progress, say
from trireid.errors import ConfigError, TrireidError

if TYPE_CHECKING:
    from trireid.ablation import Cell, Job


def run(
    config: Path,
    *,
    vary: Sequence[str],
    cells_file: Path | None,
    overrides: Sequence[str],
    seeds: int,
    out: Path,
    parallel: int,
    costs: bool,
) -> int:
    """Run what has not finished yet, then print and write the table.

    Returns:
        the exit code: 0, or 1 where a run failed.

    Raises:
        ConfigError: cells are given in both ways or in neither, a setting of a cell is wrong, or its run cannot start.
    """
    from trireid.ablation import (
        collect,
        file_cells,
        markdown,
        only_ablation,
        plan,
        run_jobs,
        vary_cells,
        visible_devices,
        write_table,
    )

    if bool(vary) == (cells_file is not None):
        raise ConfigError("give either --vary key=v1,v2 (repeat for more axes) or --cells FILE")
    cells = file_cells(cells_file) if cells_file is not None else vary_cells(vary)
    jobs = plan(config, cells, overrides=overrides, seeds=seeds, out=out)
    with only_ablation(out):
        _check(jobs, config, overrides)
        with progress(f"{len(cells)} cells x {seeds} seeds") as bar:
            failed = run_jobs(
                jobs,
                config_path=config,
                overrides=overrides,
                parallel=parallel,
                devices=visible_devices() if parallel > 1 else (),
                progress=bar.reach,
            )
    for job, reason in failed:
        note(f"{job.cell.name}, seed {job.seed} failed: {reason} ({job.folder.with_suffix('.log')})")
    measured: Mapping[str, Mapping[str, float]] = {}
    finished = {job.cell.name for job in jobs if job.is_finished}  # the rows of the table
    try:
        measured = _costs(config, [cell for cell in cells if cell.name in finished], overrides) if costs else {}
    except TrireidError as error:  # the runs took far longer than the costs do; keep their table
        note(f"the table has no costs: {error}")
    table = collect(jobs, costs=measured)
    files = write_table(table, out)
    say(markdown(table))
    say(f"table: {files[0]} and {files[1]}; run the same command again to complete or extend it")
    return 1 if failed else 0


def _check(jobs: Sequence[Job], config: Path, overrides: Sequence[str]) -> None:
    """Refuse cells whose runs cannot start, before the first run."""
    from trireid.ablation import cell_config

    waiting = {job.cell.name: job.cell for job in jobs if not job.is_finished}
    with progress("checking the grid", counted=False):
        from trireid.train.preflight import check_runs

        check_runs({name: cell_config(config, cell, overrides) for name, cell in waiting.items()})


def _costs(config: Path, cells: Sequence[Cell], overrides: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    from trireid.ablation import cell_config
    from trireid.cli.bench import measure

    if not cells:
        return {}
    configs = {cell.name: cell_config(config, cell, overrides) for cell in cells}
    with progress("measuring costs") as bar:
        rows = measure(configs, modes=("inference",), repeats=5, warmup=2, progress=bar.reach)
    return {
        row["name"]: {"triplets/s": row["throughput"]} | ({} if row["gmac"] is None else {"GMAC": row["gmac"]})
        for row in rows
    }
