"""The Markdown tables of `missing.py`: mAP in percent, mean and standard deviation over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

CASES = ("rn", "rt", "nt", "r", "n", "t")
"""The six cases by what remains."""
ALL = "rnt"
ALONE = "one model per subset"
WAYS = {"aware": "", "zero_filled": ", zero-filled"}

Value = float | None
BySeed = dict[str, Value]
"""A value of each seed, by its name."""


@dataclass(frozen=True)
class Measured:
    """What `missing.measure` found for one run."""

    cell: str
    seed: str
    metrics: dict[str, Any]

    @property
    def is_complete(self) -> bool:
        """Whether the model was trained with all modalities."""
        return bool(self.metrics.get("subset", ALL) == ALL)


def tables(runs: Sequence[Measured]) -> str:
    """All tables for which there are runs."""
    complete = [run for run in runs if run.is_complete]
    parts = [overview(complete)] if complete else []
    if len(complete) < len(runs):
        parts += [by_subset(runs)]
    if any(run.metrics.get("scenes", {}).get("aware") for run in runs):
        parts += [by_scene(runs)]
    parts += matrices(complete)
    return "\n".join(parts)


def overview(runs: Sequence[Measured]) -> str:
    """One row per cell and feature: complete, the mean of the six cases, mixed."""
    cells: dict[tuple[str, str], dict[str, list[Value]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        metrics = run.metrics
        for feature in metrics["aware"][ALL]:
            row = cells[run.cell, feature]
            row["complete"].append(metrics["aware"][ALL][feature]["mAP"])
            row["six cases"].append(metrics["aware"]["mean"][feature]["mAP"])
            row["six, zero-filled"].append(metrics["zero_filled"]["mean"][feature]["mAP"])
            for way, name in (("aware", "mixed"), ("whole", "mixed, whole"), ("zero_filled", "mixed, zero-filled")):
                row[name].append(metrics["mixed"][way][feature]["mAP"])
            for case in CASES:
                row[f"has {case}"].append(metrics["aware"][case][feature]["mAP"])
    columns = list(next(iter(cells.values())))
    body = [
        [cell, feature, str(len(row["complete"])), *(spread(row[name]) for name in columns)]
        for (cell, feature), row in cells.items()
    ]
    return markdown("All modalities and the six cases", ["cell", "feature", "seeds", *columns], body)


def by_subset(runs: Sequence[Measured]) -> str:
    """One row per feature, model and way by what query and gallery have; gains over zero-filling, paired by seed."""
    found = values_by_case(runs, lambda run, way, case, feature: run.metrics[way][case][feature]["mAP"])
    body = []
    for feature in features_of(runs):
        rows = {name: cases for (name, of), cases in found.items() if of == feature}
        body += [[feature, name, *case_cells(cases)] for name, cases in rows.items()]
        base = next((name for name in rows if name.endswith(WAYS["zero_filled"])), None)  # without dropout: as upstream
        for name, cases in rows.items():
            if base is not None and not name.endswith(WAYS["zero_filled"]):
                gains = {case: differences(cases.get(case, {}), rows[base].get(case, {})) for case in (ALL, *CASES)}
                body.append([feature, f"gain of {name} over {base}", *case_cells(gains)])
    header = ["feature", "model", ALL, *CASES, "mean of six"]
    return markdown("What query and gallery have: one model for all, zero-filling, one model per subset", header, body)


def by_scene(runs: Sequence[Measured]) -> str:
    """The same for the queries of each scene, by the last feature."""
    scenes = sorted({scene for run in runs for scene in run.metrics.get("scenes", {}).get("aware", {})})
    body = []
    for scene in scenes:
        found = values_by_case(runs, lambda run, way, case, feature, of=scene: _of_scene(run, way, of, case, feature))
        body += [
            [scene, name, *case_cells(cases)] for (name, of), cases in found.items() if of == features_of(runs)[-1]
        ]
    return markdown(
        f"By scene of the query, {features_of(runs)[-1]}", ["scene", "model", ALL, *CASES, "mean of six"], body
    )


def _of_scene(run: Measured, way: str, scene: str, case: str, feature: str) -> Value:
    value: Value = run.metrics["scenes"][way][scene].get(case, {}).get(feature, {}).get("mAP")
    return value


def matrices(runs: Sequence[Measured]) -> list[str]:
    """Every subset as query against every subset as gallery, one table per cell and way, by the last feature."""
    cells: dict[str, list[Measured]] = defaultdict(list)
    for run in runs:
        if "any_to_any" in run.metrics:
            cells[run.cell].append(run)
    parts = [unequal(cells)] if cells else []
    for cell, same in cells.items():
        subsets = [ALL, *CASES]
        order = list(same[0].metrics["aware"])  # rnt, nt, rt, ...: as the matrix was made
        for way, shown in WAYS.items():
            feature = features_of(same)[-1]
            grids = [run.metrics["any_to_any"][way][feature]["mAP"] for run in same]
            body = [
                [row, *(spread([grid[order.index(row)][order.index(column)] for grid in grids]) for column in subsets)]
                for row in subsets
            ]
            parts.append(markdown(f"{cell}{shown}, {feature}: queries in rows, gallery", ["query", *subsets], body))
    return parts


def unequal(cells: Mapping[str, Sequence[Measured]]) -> str:
    """The mean over the pairs of different subsets of query and gallery that share a block of the last feature."""
    body = []
    for cell, runs in cells.items():
        pairs = [different_pairs(run, features_of(runs)[-1]) for run in runs]
        means = [(mean(one for one, _ in each), mean(other for _, other in each)) for each in pairs]
        gains = [one - other for one, other in means]
        shown = [spread(one for one, _ in means), spread(other for _, other in means), spread(gains)]
        body.append([cell, str(len(pairs[0])), *shown])
    header = ["model", "pairs of subsets", "presence-aware", "zero-filled", "gain"]
    return markdown("Query and gallery have different modalities", header, body)


def different_pairs(run: Measured, feature: str) -> list[tuple[float, float]]:
    """mAP, presence-aware and zero-filled, of every query subset in every other gallery subset that has both."""
    aware, filled = (run.metrics["any_to_any"][way][feature]["mAP"] for way in WAYS)
    return [
        (one, other)
        for row, (ours, theirs) in enumerate(zip(aware, filled, strict=True))
        for column, (one, other) in enumerate(zip(ours, theirs, strict=True))
        if row != column and one is not None and other is not None
    ]


def values_by_case(runs: Sequence[Measured], value_of: Any) -> dict[tuple[str, str], dict[str, BySeed]]:
    """By (model and way, feature), case and seed; runs with fewer modalities are together one model per subset."""
    found: dict[tuple[str, str], dict[str, BySeed]] = defaultdict(lambda: defaultdict(dict))
    for run in sorted(runs, key=lambda each: not each.is_complete):
        for way, shown in WAYS.items() if run.is_complete else (("aware", ""),):
            for case in (ALL, *CASES) if run.is_complete else (run.metrics["subset"],):
                for feature in run.metrics[way][case]:
                    name = f"{run.cell}{shown}" if run.is_complete else ALONE
                    found[name, feature][case][run.seed] = value_of(run, way, case, feature)
    return found


def features_of(runs: Iterable[Measured]) -> list[str]:
    """The features of the first run."""
    first = next(iter(runs)).metrics
    return list(first["aware"][first.get("subset", ALL)])


def case_cells(cases: Mapping[str, BySeed]) -> list[str]:
    """The text of each case and of the mean of the six, over the seeds that have all of these."""
    shown = [spread(cases.get(case, {}).values()) for case in (ALL, *CASES)]
    six = [[cases.get(case, {}).get(seed) for case in CASES] for seed in cases.get(CASES[0], {})]
    means = [mean(value for value in each if value is not None) for each in six if None not in each]
    return [*shown, spread(means)]


def differences(one: BySeed, other: BySeed) -> BySeed:
    """One minus the other, of the seeds that both have."""
    return {
        seed: value - base for seed, value in one.items() if value is not None and (base := other.get(seed)) is not None
    }


def spread(values: Iterable[Value]) -> str:
    """Mean and standard deviation in percent; a dash where nothing could be ranked."""
    percent = [100 * value for value in values if value is not None]
    if not percent:
        return "-"
    return f"{mean(percent):.1f} ± {stdev(percent):.1f}" if len(percent) > 1 else f"{percent[0]:.1f}"


def markdown(title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table below its title."""
    lines = [f"**{title}**", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)]) + "\n"
