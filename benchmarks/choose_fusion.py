r"""Chooses cells, contrast and the power of adaptive fusion for tno_scenes on scenes of its training split.

Each of four scenes is held out in turn. Its images are ranked as they are, and with the second capture veiled by
artificial smoke or night noise in some spectra, since no training scene is veiled. The choice is the cell and the power
with the highest mean of two numbers: mAP as they are, and the mean mAP of the veils, both over the two rules. The test
split is never looked at. Runs that are done are not repeated.

    python benchmarks/choose_fusion.py --root data/tno_scenes --out runs/choose_fusion --parallel 14 \
        model.backbone.pretrained=<file of vit_small_patch14_dinov2>  (TNO; minutes on a GPU)
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from choice_bounds import VEILS, veiled
from json_results import read_results
from landsat_yardsticks import RULES
from PIL import Image
from tno_recipe import SINGLE, Task, image_files, run_config, write_fold

from trireid.ablation import file_cells
from trireid.cli.guard import guarded
from trireid.config.load import dump_changes, load_config, override_config
from trireid.data.images import load_images
from trireid.data.readers import scan
from trireid.data.records import Record
from trireid.errors import RunError, printable
from trireid.evaluation.evaluate import evaluate_features
from trireid.files import write_json
from trireid.train.checkpoint import build_for, load_checkpoint
from trireid.train.device import autocast_dtype, resolve_device, resolve_precision
from trireid.train.evaluating import evaluate_split
from trireid.train.inputs import open_test, scan_index
from trireid.train.loop import train
from trireid.types import Protocol

AS_THEY_ARE = "as they are"
VIEWS = {AS_THEY_ARE: ("", ()), **VEILS}
POWERS = (0, 2, 4, 8)
SEEDS = (1, 2)
Metrics = dict[str, dict[str, float]]
"""MAP of the head feature by view, and by power and rule."""


def write_view(records: Sequence[Record], task: Task, view: str, folder: Path) -> Path:
    """The manifest of a task with its test split veiled as the view is, in a new folder beside the images it veils."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    second = max(str(record.camera) for record in records)
    kind, spectra = VIEWS[view]

    def files(record: Record) -> list[str]:
        paths = image_files(record)
        if spectra and task.split(record) == "test" and str(record.camera) == second:
            images = load_images(record)
            for spectrum in spectra:
                image = images[spectrum]
                assert image is not None, "image_files refuses items that lack one"
                grey = veiled(image[None, :1].float() / 255, kind, generator)[0, 0]
                paths[spectrum] = str(folder / f"{spectrum}_{Path(paths[spectrum]).stem}.png")
                Image.fromarray((255 * grey).round().byte().numpy()).save(paths[spectrum])
        return paths

    path = folder / "manifest.csv"
    write_fold(records, task, path, files=files)
    return path


def run_task(task: Task, given: argparse.Namespace) -> tuple[Metrics, int]:
    """Train without the scenes of a task, and rank them in every view; also the number of queries."""
    with tempfile.TemporaryDirectory(dir=given.scratch) as name:
        scratch = Path(name)
        records = scan("tno_scenes", given.root).train
        manifests = {view: write_view(records, task, view, scratch / str(i)) for i, view in enumerate(VIEWS)}
        fold = manifests[AS_THEY_ARE]
        config = run_config(task, given.config, fold=fold, cache=scratch / "cache", output=scratch / "run")
        train(config, progress=False)
        device = resolve_device(config.train.device)
        dtype = autocast_dtype(resolve_precision(config.train.precision, device))
        checkpoint = load_checkpoint(scratch / "run")
        model = build_for(checkpoint, config).to(device).eval()
        found: Metrics = {}
        queries = 0
        for view, path in manifests.items():
            index = scan_index(override_config(config, [f"data.root={path}"]))
            split = open_test(config, index, checkpoint.label_map, device=device)
            result = evaluate_split(model, split, settings=config.evaluate, device=device, dtype=dtype, progress=False)
            assert result is not None, "one process"
            queries = result.num_queries
            for power in POWERS:
                for rule in RULES:
                    ranking = replace(result.source, protocol=Protocol(rule, rule), adaptive_fusion=float(power))
                    metrics = evaluate_features(ranking, device=device).metrics
                    found.setdefault(view, {})[f"{power} {rule}"] = metrics["head"]["mAP"]
        return found, queries


def by_seed(runs: Mapping[str, tuple[Metrics, int]], cell: str, view: str, power: int, rule: str) -> list[float]:
    """MAP in percent of one row by seed, over the queries of all scenes; seeds that lack a scene are left out."""
    values = []
    for seed in SEEDS:
        keys = [Task(cell, (), scenes, seed).key for scenes in SINGLE]
        if all(key in runs for key in keys):
            pairs = [(runs[key][0][view][f"{power} {rule}"], runs[key][1]) for key in keys]
            values.append(100 * sum(value * n for value, n in pairs) / sum(n for _, n in pairs))
    return values


def score(runs: Mapping[str, tuple[Metrics, int]], cell: str, power: int) -> float:
    """What chooses: the mean of mAP as they are and of the mean mAP of the veils, over rules and seeds."""

    def of(view: str) -> float:
        return mean(value for rule in RULES for value in by_seed(runs, cell, view, power, rule))

    return mean((of(AS_THEY_ARE), mean(of(view) for view in VEILS)))


def table(runs: Mapping[str, tuple[Metrics, int]], cells: list[str]) -> str:
    """Markdown: a row for each cell with all runs and each power, the best first; the choice, if no run is missing."""
    lines = [f"| cell | power | score | {' | '.join(f'{view}, `{rule}`' for view in VIEWS for rule in RULES)} |"]
    lines.append("|---|---:|---:|" + "---:|" * len(VIEWS) * len(RULES))
    done = [cell for cell in cells if len(by_seed(runs, cell, AS_THEY_ARE, 0, RULES[0])) == len(SEEDS)]
    rows = sorted(((score(runs, cell, power), cell, power) for cell in done for power in POWERS), reverse=True)
    for total, cell, power in rows:
        shown = []
        for view in VIEWS:
            for rule in RULES:
                values = by_seed(runs, cell, view, power, rule)
                shown.append(f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else ""))
        lines.append(f"| {cell} | {power} | {total:.1f} | {' | '.join(shown)} |")
    lines = [*lines, ""] if rows else []
    if missing := [cell for cell in cells if cell not in done]:
        lines.append(f"nothing is chosen: runs of {', '.join(missing)} are missing")
    else:
        lines.append(f"chosen: {rows[0][1]}, evaluate.adaptive_fusion={rows[0][2]}")
    return "\n".join(lines)


def start_results(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a file of results holds, or an empty one with these settings.

    Raises:
        RunError: the file cannot be read, or was written with other settings.
    """
    if not path.is_file():
        return {"settings": settings, "runs": {}}
    found = read_results(path)
    if found.get("settings") != settings or not isinstance(found.get("runs"), dict):
        raise RunError(f"{path} was written with other cells or settings: give another --out, or remove it")
    return found


def run_all(tasks: Sequence[Task], given: argparse.Namespace, results: dict[str, Any], path: Path) -> int:
    """Run what has no result yet, and keep each result at once; the number of runs that failed."""
    failed = 0
    with (
        tempfile.TemporaryDirectory(prefix="tno-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch,
        ProcessPoolExecutor(given.parallel, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        given.scratch = Path(scratch)
        waiting = {pool.submit(run_task, task, given): task for task in tasks if task.key not in results["runs"]}
        for future in as_completed(waiting):
            task = waiting[future]
            if error := future.exception():
                reason = printable(str(error), limit=200)
                print(f"{task.key}: {type(error).__name__}: {reason}", file=sys.stderr)
                failed += 1
                if not results["runs"]:  # a wrong setting or weight file fails in every run
                    pool.shutdown(cancel_futures=True)
                    break
            else:
                results["runs"][task.key] = future.result()
                write_json(path, results)
    return failed


def main() -> None:
    """Read the command line, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/tno_scenes"), help="folder of tno_scenes")
    parser.add_argument("--out", type=Path, default=Path("runs/choose_fusion"), help="folder of results.json")
    parser.add_argument(
        "--config", type=Path, default=Path("configs/trireid/tno_scenes/recipe.yaml"), help="of all runs"
    )
    parser.add_argument("--cells", type=Path, default=Path("benchmarks/choose_fusion_tno.yaml"), help="as of ablate")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of all cells")
    given = parser.parse_args()
    cells = {cell.name: cell.overrides for cell in file_cells(given.cells)}
    scan("tno_scenes", given.root)  # refuses a wrong folder once, not in every run
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "results.json"
    settings = {
        "config": dump_changes(load_config(given.config, given.settings)),
        "cells": {name: list(overrides) for name, overrides in cells.items()},
    }
    results = start_results(path, settings)
    tasks = [
        Task(name, (*overrides, *given.settings), scenes, seed)
        for seed in SEEDS
        for name, overrides in cells.items()
        for scenes in SINGLE
    ]
    failed = run_all(tasks, given, results, path)
    print(table(results["runs"], list(cells)))
    if failed:
        raise RunError(f"{failed} of {len(tasks)} runs failed, see above: run again for those that are missing")


if __name__ == "__main__":
    with guarded():
        main()
