"""What centring does to finished runs: no centring, the mean of the training features, and that of each camera.

    python benchmarks/centring.py runs/grid [runs/OTHER ...] [--rules camera,cross_camera] [--out FILE]

Every folder is one of `trireid ablate`, with runs CELL/seedN that were evaluated without centring. Nothing is trained
and no image is read: the saved features are ranked again, with the mean that the last checkpoint holds, and without
adaptive fusion unless `--adaptive-fusion` gives its power, whatever the runs were evaluated with. Prints a Markdown
table a folder: mAP in percent, mean and standard deviation over the seeds; and the gain of each kind, whose deviation
is over the seeds too. Seconds for a few runs, on one CPU core.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import get_args

from paired import note_not_fused

from trireid.cli.guard import guarded
from trireid.errors import RunError
from trireid.evaluation.centring import centred_by_camera, centred_by_means
from trireid.evaluation.evaluate import evaluate_features
from trireid.evaluation.feature_files import load_features
from trireid.evaluation.ranking import Ranking
from trireid.files import check_writable, write_json
from trireid.names import LARGEST_POWER, Exclusion
from trireid.train.checkpoint import load_checkpoint
from trireid.types import Protocol

KINDS = ("none", "train", "camera")
FEATURES = ("global", "head", "joint")
Found = dict[str, dict[str, dict[str, float]]]
"""mAP by feature, rule and kind of centring."""


def measure(run: Path, saved: Ranking, rules: Sequence[str], *, power: float = 0.0) -> Found:
    """One run with its saved features under every kind of centring, with adaptive fusion of a power (0: without).

    Raises:
        RunError: it was evaluated with centring, or its checkpoint has no mean.
    """
    checkpoint, ranking = load_checkpoint(run), replace(saved, adaptive_fusion=power)
    own = checkpoint.config.evaluate.centring
    if own != "none":
        raise RunError(f"{run} was evaluated with evaluate.centring={own}: its saved features are centred already")
    if not checkpoint.centre:
        raise RunError(f"{run} has no mean of its training features: it was trained by an earlier version")
    given = {
        "none": ranking,
        "train": centred_by_means(ranking, checkpoint.centre),
        "camera": centred_by_camera(ranking),
    }
    for name in FEATURES:
        if name in ranking.query.features.features:
            note_not_fused(run, ranking, name)
    found: Found = defaultdict(lambda: defaultdict(dict))
    for rule in rules or [ranking.protocol.exclude]:
        for kind, each in given.items():
            result = evaluate_features(replace(each, protocol=Protocol(rule, rule)))
            for feature, metrics in result.metrics.items():
                found[feature][rule][kind] = metrics["mAP"]
    return found


def table(runs: dict[str, list[Found]], rules: Sequence[str]) -> str:
    """Markdown rows of a folder: cell, feature and rule."""
    lines = ["| cell | feature | rule | seeds | none | train | camera | train - none | camera - none |"]
    lines.append("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for cell, found in runs.items():
        for feature in (name for name in FEATURES if name in found[0]):
            for rule in found[0][feature]:
                values = {kind: [100 * each[feature][rule][kind] for each in found] for kind in KINDS}
                gains = [
                    [after - before for before, after in zip(values["none"], values[kind], strict=True)]
                    for kind in KINDS[1:]
                ]
                shown = [*(_spread(values[kind]) for kind in KINDS), *(_spread(each, sign="+") for each in gains)]
                lines.append("| " + " | ".join([cell, feature, rule, str(len(found)), *shown]) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float], *, sign: str = "") -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.1f}{spread}"


def note_left_out(own: Iterable[float], power: float) -> None:
    """One line on the error stream where runs were evaluated with other powers of adaptive fusion, their own."""
    left_out = sorted({*own} - {0.0, power})
    if left_out:
        powers, here = " and ".join(f"{each:g}" for each in left_out), f"with {power:g}" if power else "without it"
        sys.stderr.write(
            f"note: some runs were evaluated with evaluate.adaptive_fusion={powers} and are ranked {here} here: "
            f"--adaptive-fusion {left_out[-1]:g} ranks with it\n"
        )


def main() -> None:
    """Measure all folders and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="--out folders of trireid ablate")
    parser.add_argument("--rules", default="", help="such as camera,cross_camera; that of the runs if left out")
    parser.add_argument(
        "--adaptive-fusion", type=float, default=0.0, metavar="POWER", help="rank with it; default: 0, without"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the metrics of every run")
    given = parser.parse_args()
    rules = [rule for rule in given.rules.split(",") if rule]
    if strange := sorted(set(rules) - set(get_args(Exclusion))):
        parser.error(f"--rules has {strange[0]!r}; choose among {', '.join(get_args(Exclusion))}")
    power = given.adaptive_fusion
    if not 0.0 <= power <= LARGEST_POWER:
        parser.error(f"--adaptive-fusion is {power:g}; allowed are 0 (off) to {LARGEST_POWER:g}")
    if given.out is not None:
        check_writable(given.out)
    everything: dict[str, dict[str, dict[str, Found]]] = {}
    own: set[float] = set()
    for folder in given.folders:
        runs: dict[str, dict[str, Found]] = {}
        for path in sorted(folder.glob("*/seed*/metrics.json")):
            run = path.parent
            saved = load_features(run)
            own.add(saved.adaptive_fusion)
            runs.setdefault(run.parent.name, {})[run.name] = measure(run, saved, rules, power=power)
        if not runs:
            raise RunError(f"{folder} holds no finished run: give the --out folder of trireid ablate")
        everything[str(folder)] = runs
        shown = table({cell: list(found.values()) for cell, found in runs.items()}, rules)
        print(f"\n{folder.name}{f', adaptive fusion {power:g}' * bool(power)}\n\n{shown}", flush=True)
    note_left_out(own, power)
    if given.out is not None:
        write_json(given.out, everything)


if __name__ == "__main__":
    with guarded():
        main()
