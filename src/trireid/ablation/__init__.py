"""Grids of runs: every cell is trained and evaluated over several seeds, with mean and spread; resumable."""

from trireid.ablation.grid import Cell, Job, cell_config, cell_folder, file_cells, job_settings, plan, vary_cells
from trireid.ablation.running import only_ablation, run_jobs, visible_devices
from trireid.ablation.table import Table, TableRow, collect, markdown, write_table

__all__ = [
    "Cell",
    "Job",
    "Table",
    "TableRow",
    "cell_config",
    "cell_folder",
    "collect",
    "file_cells",
    "job_settings",
    "markdown",
    "only_ablation",
    "plan",
    "run_jobs",
    "vary_cells",
    "visible_devices",
    "write_table",
]
