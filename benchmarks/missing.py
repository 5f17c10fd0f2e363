"""Missing modalities of the runs of a folder, presence-aware and zero-filled: Markdown tables, and all of it as JSON.

Every run (`CELL/seedN` of `trireid ablate`) is measured once and keeps its metrics in `missing.json`:

- cases: the complete set and the six published cases, the same modalities withheld from query and gallery; by scene
  where the data set has scenes;
- mixed: every item has a random subset of its modalities (the same for all runs), so that query and gallery items with
  any modalities are compared: by our distance, by whole features with zeros for what is absent, and by zero images.
  Beside it stands the share of pairs of query and gallery that share no block of a feature and are ranked as unrelated.
- any to any, with --matrix: the 7 x 7 table of every subset as query against every subset as gallery.

A run that was trained with some modalities alone (`data.modalities`) is measured with these alone. Every ranking is
without adaptive fusion, also of runs that were evaluated with it.

    python benchmarks/missing.py FOLDER [--parallel N] [--matrix]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from missing_tables import Measured, tables
from torch import nn

from trireid.ablation import visible_devices
from trireid.cli.guard import guarded
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.errors import RunError
from trireid.evaluation.breakdown import break_down, known_columns
from trireid.evaluation.evaluate import unshared_by_feature
from trireid.evaluation.missing import subset_cases
from trireid.evaluation.ranking import Ranking, Side
from trireid.evaluation.subsets import (
    case_rankings,
    mean_metrics,
    metrics_of,
    rank_any_to_any,
    rank_case,
    without_blocks,
)
from trireid.files import write_json, write_text
from trireid.train.checkpoint import build_for, load_checkpoint
from trireid.train.device import autocast_dtype, resolve_device, resolve_precision
from trireid.train.evaluating import extract_split
from trireid.train.inputs import EvaluationSplit, open_test, scan_index
from trireid.types import MODALITIES


def measure(run: Path, *, matrix: bool) -> dict[str, Any]:
    """Metrics of one run, see the top of the file."""
    checkpoint = load_checkpoint(run)
    config = checkpoint.config
    if power := config.evaluate.adaptive_fusion:
        sys.stderr.write(f"note: {run} was evaluated with evaluate.adaptive_fusion={power:g}, which is left out here\n")
    device = resolve_device(config.train.device)
    model = build_for(checkpoint, config).to(device)
    split = open_test(config, scan_index(config), checkpoint.label_map, device=device)
    cases = subset_cases(config.data.modalities)
    complete = next(iter(cases))
    found: dict[str, Any] = {"subset": complete}
    if len(config.data.modalities) < len(MODALITIES):
        cases = {complete: ()}
    for way, filled in (("aware", False), ("zero_filled", True))[: 1 if len(cases) == 1 else None]:
        rankings = _rankings(model, split, cases, config=config, device=device, filled=filled)
        found[way], found.setdefault("scenes", {})[way] = _by_case(rankings, device)
        if len(cases) > 1:
            found[way]["mean"] = mean_metrics({name: each for name, each in found[way].items() if cases[name]})
            _add_mixed(found, way, rankings, query_is_gallery=split.gallery_labels is None, device=device)
        if len(cases) > 1 and matrix:
            found.setdefault("any_to_any", {})[way] = rank_any_to_any(rankings, device=device)
    return found


def _rankings(
    model: nn.Module,
    split: EvaluationSplit,
    cases: Mapping[str, tuple[str, ...]],
    *,
    config: Config,
    device: torch.device,
    filled: bool,
) -> dict[str, Ranking]:
    """The features of every case, absent modalities left out or as images of zeros."""
    shown_as = f"evaluate.missing_as={'zeros' if filled else 'absent'}"
    plain = [shown_as, "evaluate.normalise=true", "evaluate.adaptive_fusion=0"]
    settings = override_config(config, plain).evaluate
    dtype = autocast_dtype(resolve_precision(config.train.precision, device))
    rankings: dict[str, Ranking] = {}
    for shown, withheld in cases.items():
        ranking = extract_split(
            model, split, settings=settings, device=device, dtype=dtype, progress=False, withheld=withheld
        )
        assert ranking is not None
        rankings[shown] = ranking
    return rankings


def _by_case(rankings: Mapping[str, Ranking], device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics by case, and by scene and case where there are scenes."""
    ranked: dict[str, Any] = {}
    scenes: dict[str, Any] = {}
    for shown, ranking in rankings.items():
        found = case_rankings(ranking, device=device)
        ranked[shown] = metrics_of(found)
        complete = {name: each for name, each in found.items() if each is not None}
        records = ranking.query.records
        if complete and "scene" in known_columns(records):
            for scene, group in break_down(complete, records, ["scene"])["scene"].items():
                scenes.setdefault(scene, {})[shown] = group["feature"]
    return ranked, scenes


def _add_mixed(
    found: dict[str, Any],
    way: str,
    rankings: Mapping[str, Ranking],
    *,
    query_is_gallery: bool,
    device: torch.device,
) -> None:
    """Add the metrics of items that have any modalities."""
    query = gallery = mixed([each.query for each in rankings.values()], seed=0)
    if not query_is_gallery:
        gallery = mixed([each.gallery for each in rankings.values()], seed=1)
    every_kind = Ranking(query, gallery, next(iter(rankings.values())).protocol)
    ranked = rank_case(every_kind, device=device)
    found.setdefault("mixed", {})[way] = ranked
    unshared = {name: unshared_by_feature(every_kind, name) for name in ranked}
    found.setdefault("mixed_unshared_pairs", {})[way] = unshared
    if way == "aware":
        found["mixed"]["whole"] = rank_case(without_blocks(every_kind), device=device)


def mixed(cases: Sequence[Side], *, seed: int) -> Side:
    """Every item out of a random case."""
    sets = [side.features for side in cases]
    choice = torch.randint(len(sets), (len(sets[0]),), generator=torch.Generator().manual_seed(seed))
    row = torch.arange(len(choice))
    features = {name: torch.stack([each.features[name] for each in sets])[choice, row] for name in sets[0].features}
    present = torch.stack([each.present for each in sets])[choice, row]
    return replace(cases[0], features=replace(sets[0], features=features, present=present))


def measure_all(runs: Sequence[Path], *, parallel: int, matrix: bool) -> None:
    """Measure the runs without metrics, divided among processes."""
    waiting = [run for run in runs if not (run / "missing.json").is_file()]
    devices = visible_devices()
    running = []
    for number in range(min(parallel, len(waiting))):
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))}
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        part = [str(run) for run in waiting[number::parallel]]
        command = [sys.executable, __file__, *["--matrix"] * matrix, "--runs", *part]
        running.append(subprocess.Popen(command, env=environment))
    for process in running:
        process.wait()


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs/missing"), help="of runs; default: runs/missing"
    )
    parser.add_argument("--parallel", type=int, default=1, help="runs that are measured at the same time")
    parser.add_argument("--matrix", action="store_true", help="also every subset against every other")
    parser.add_argument("--runs", type=Path, nargs="+", help="measure these runs alone")
    given = parser.parse_args()
    if given.runs is not None:
        for run in given.runs:
            write_json(run / "missing.json", measure(run, matrix=given.matrix))
        return
    made = [path.parent for path in sorted(given.folder.glob("*/seed*/metrics.json"))]
    measure_all(made, parallel=given.parallel, matrix=given.matrix)
    runs = [path.parent for path in sorted(given.folder.glob("*/seed*/missing.json"))]
    if not runs:
        raise RunError(f"{given.folder} holds no finished run: give the --out folder of trireid ablate")
    if lacking := len(made) - len(runs):
        sys.stderr.write(f"{lacking} of {len(made)} runs could not be measured\n")
    metrics = {str(run.relative_to(given.folder)): json.loads((run / "missing.json").read_text()) for run in runs}
    text = tables([Measured(run.parent.name, run.name, metrics[str(run.relative_to(given.folder))]) for run in runs])
    write_text(given.folder / "missing.md", text)
    write_json(given.folder / "missing.json", metrics)
    sys.stdout.write(text)


if __name__ == "__main__":
    with guarded():
        main()
