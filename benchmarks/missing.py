"""Missing modalities of the runs of a folder, presence-aware and zero-filled: a Markdown table, and all of it as JSON.

Every run (`CELL/seedN` of `trireid ablate`) is measured once and keeps its metrics in `missing.json`:

- cases: the complete set and the six published cases, the same modalities withheld from query and gallery;
- mixed: every item has a random subset of its modalities (the same for all runs), so that query and gallery items with
  any modalities are compared: by our distance, by whole features with zeros for what is absent, and by zero images.
  Beside it stands the share of pairs of query and gallery that share no block of a feature and are ranked as unrelated.

    python benchmarks/missing.py FOLDER [--parallel N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from trireid.ablation import visible_devices
from trireid.config.load import override_config
from trireid.evaluation.evaluate import unshared_by_feature
from trireid.evaluation.missing import subset_cases
from trireid.evaluation.ranking import Ranking, Side
from trireid.evaluation.subsets import mean_metrics, rank_case, rank_cases, without_blocks
from trireid.files import write_json, write_text
from trireid.train.checkpoint import build_for, load_checkpoint
from trireid.train.device import autocast_dtype, resolve_device, resolve_precision
from trireid.train.evaluating import extract_split
from trireid.train.inputs import open_test, scan_index

CASES = subset_cases()


def measure(run: Path) -> dict[str, Any]:
    """Metrics of one run, see the top of the file."""
    checkpoint = load_checkpoint(run)
    config = checkpoint.config
    device = resolve_device(config.train.device)
    dtype = autocast_dtype(resolve_precision(config.train.precision, device))
    model = build_for(checkpoint, config).to(device)
    split = open_test(config, scan_index(config), checkpoint.label_map, device=device)
    unshared: dict[str, dict[str, float]] = {}
    found: dict[str, Any] = {"mixed": {}, "mixed_unshared_pairs": unshared}
    for way, filled in (("aware", False), ("zero_filled", True)):
        shown_as = f"evaluate.missing_as={'zeros' if filled else 'absent'}"
        changed = override_config(config, [shown_as, "evaluate.normalise=true"]).evaluate
        rankings: dict[str, Ranking] = {}
        for shown, withheld in CASES.items():
            ranking = extract_split(
                model, split, settings=changed, device=device, dtype=dtype, progress=False, withheld=withheld
            )
            assert ranking is not None
            rankings[shown] = ranking
        ranked = rank_cases(rankings, device=device)
        found[way] = ranked | {"mean": mean_metrics({name: each for name, each in ranked.items() if CASES[name]})}
        query = gallery = mixed([each.query for each in rankings.values()], seed=0)
        if split.gallery_labels is not None:
            gallery = mixed([each.gallery for each in rankings.values()], seed=1)
        every_kind = Ranking(query, gallery, split.protocol)
        found["mixed"][way] = rank_case(every_kind, device=device)
        unshared[way] = {name: unshared_by_feature(every_kind, name) for name in found["mixed"][way]}
        if not filled:
            found["mixed"]["whole"] = rank_case(without_blocks(every_kind), device=device)
    return found


def mixed(cases: Sequence[Side], *, seed: int) -> Side:
    """Every item out of a random case."""
    sets = [side.features for side in cases]
    choice = torch.randint(len(sets), (len(sets[0]),), generator=torch.Generator().manual_seed(seed))
    row = torch.arange(len(choice))
    features = {name: torch.stack([each.features[name] for each in sets])[choice, row] for name in sets[0].features}
    present = torch.stack([each.present for each in sets])[choice, row]
    return replace(cases[0], features=replace(sets[0], features=features, present=present))


def measure_all(runs: list[Path], *, parallel: int) -> None:
    """Measure the runs without metrics, each run in a process of its own."""
    waiting = [run for run in runs if not (run / "missing.json").is_file()]
    devices = visible_devices()
    running: list[subprocess.Popen[bytes]] = []
    for number, run in enumerate(waiting):
        environment = dict(os.environ)
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        if len(running) == parallel:
            running.pop(0).wait()
        running.append(subprocess.Popen([sys.executable, __file__, "--run", str(run)], env=environment))
    for process in running:
        process.wait()


def table(runs: list[Path]) -> str:
    """Mean and standard deviation over seeds by cell and feature, mAP in percent."""
    cells: dict[tuple[str, str], dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        metrics = json.loads((run / "missing.json").read_text())
        for feature in metrics["aware"]["rnt"]:
            row = cells[run.parent.name, feature]
            row["complete"].append(metrics["aware"]["rnt"][feature]["mAP"])
            row["six cases"].append(metrics["aware"]["mean"][feature]["mAP"])
            row["six, zero-filled"].append(metrics["zero_filled"]["mean"][feature]["mAP"])
            for way, name in (("aware", "mixed"), ("whole", "mixed, whole"), ("zero_filled", "mixed, zero-filled")):
                row[name].append(metrics["mixed"][way][feature]["mAP"])
            for case, withheld in CASES.items():
                if withheld:
                    row[f"has {case}"].append(metrics["aware"][case][feature]["mAP"])
    header = ["cell", "feature", "seeds", *next(iter(cells.values()))]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    for (cell, feature), row in cells.items():
        values = [_spread(each) for each in row.values()]
        lines.append("| " + " | ".join([cell, feature, str(len(row["complete"])), *values]) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float | None]) -> str:
    percent = [100 * value for value in values if value is not None]  # None: nothing was left that could be ranked
    if not percent:
        return "-"
    return f"{mean(percent):.1f} ± {stdev(percent):.1f}" if len(percent) > 1 else f"{percent[0]:.1f}"


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/missing"))
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--run", type=Path, help="measure this run alone")
    given = parser.parse_args()
    if given.run is not None:
        write_json(given.run / "missing.json", measure(given.run))
        return
    measure_all([path.parent for path in sorted(given.folder.glob("*/seed*/metrics.json"))], parallel=given.parallel)
    runs = [path.parent for path in sorted(given.folder.glob("*/seed*/missing.json"))]
    if not runs:
        sys.exit(f"{given.folder} holds no finished run: give the --out folder of trireid ablate")
    text = table(runs)
    write_text(given.folder / "missing.md", text)
    write_json(
        given.folder / "missing.json",
        {str(run.relative_to(given.folder)): json.loads((run / "missing.json").read_text()) for run in runs},
    )
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
