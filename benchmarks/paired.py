"""Cells of finished grids against their controls, query by query: a Markdown table, and all of it as JSON.

    python benchmarks/paired.py FOLDER --against sdtps [--also FOLDER2] [--scene NAME] [--exclude RULE]

FOLDER holds runs `CELL/seedN` of `trireid ablate`, whose saved features are ranked again; nothing is trained and no
image is read. A cell has the mAP of all queries and of each `--scene`, with its standard deviation over the seeds, and
for each control the difference with a 95 % interval: the average precision of a query is averaged over the seeds, its
difference to the control's is taken, and identities (of one scene: its own) are drawn with replacement 2,000 times.
The interval is about identities; the deviation beside mAP is about seeds. `--also` adds the mAP of the same cells in
another grid, such as another data set. `--exclude` ranks by another rule than that of the runs. All cells are ranked
without adaptive fusion, also those whose runs were evaluated with it; `--adaptive-fusion 4` shows every cell a second
time, ranked with `evaluate.adaptive_fusion=4` (name ends with `_fused`). `--costs` reads rows of `trireid bench --mode
inference --out JSON`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

import numpy as np
from json_results import read_results
from numpy.typing import NDArray

from trireid.ablation import cell_folder
from trireid.cli.guard import guarded
from trireid.errors import RunError
from trireid.evaluation.evaluate import feature_distance, fused_spectra
from trireid.evaluation.feature_files import load_features
from trireid.evaluation.identity_bootstrap import identity_weights
from trireid.evaluation.metrics import rank_metrics
from trireid.evaluation.ranking import Ranking
from trireid.files import FEATURES_FILE, write_json
from trireid.names import LARGEST_POWER, Exclusion
from trireid.types import Protocol

Floats = NDArray[np.float64]
REPLICATES = 2000
FUSED = "_fused"
"""What the name of a cell ends with that is ranked with adaptive fusion."""


@dataclass(frozen=True)
class Cell:
    """The runs of one cell.

    Attributes:
        name: of its folder.
        precision: `(S, Q)` average precision of S seeds and Q queries; NaN where a query has no match.
        identity: `(Q,)` identity of each query, as text.
        scene: `(Q,)` scene of each query; empty text where it is not known.
        own_power: the largest `evaluate.adaptive_fusion` of its runs, whatever it is ranked with here.
    """

    name: str
    precision: Floats
    identity: NDArray[np.str_]
    scene: NDArray[np.str_]
    own_power: float = 0.0

    def of(self, scene: str | None) -> NDArray[np.bool_]:
        """`(Q,)`, the queries of a scene that have a match; None: of all scenes.

        Raises:
            RunError: there is no such scene.
        """
        if scene is not None and scene not in self.scene:
            raise RunError(f"no query is of scene {scene!r}; there are {', '.join(sorted(set(self.scene)))}")
        matched = np.isfinite(self.precision).all(axis=0)
        return matched if scene is None else matched & (self.scene == scene)

    def seeds(self, scene: str | None = None) -> list[float]:
        """The mAP of each seed, in percent."""
        return [100 * float(row[self.of(scene)].mean()) for row in self.precision]


def note_not_fused(run: Path, ranking: Ranking, name: str) -> None:
    """One line on the error stream where adaptive fusion is on and cannot weigh the spectra of a feature."""
    if ranking.adaptive_fusion and not fused_spectra(ranking, name):
        sys.stderr.write(f"note: {run}: {name} mixes spectra or items lack some: ranked without adaptive fusion\n")


def read_cell(folder: Path, feature: str, rule: Exclusion | None = None, power: float = 0.0) -> Cell:
    """Rank the saved features of all runs of a cell, with adaptive fusion of a power; a rule of None is theirs.

    Raises:
        RunError: there are no features, or the runs do not have the same queries.
    """
    runs = sorted((path.parent for path in folder.glob(f"seed*/{FEATURES_FILE}")), key=lambda run: int(run.name[4:]))
    rows, names, ranking, own_power = [], None, None, 0.0
    for run in runs:
        ranking = load_features(run)
        own_power = max(own_power, ranking.adaptive_fusion)
        ranking = replace(ranking, adaptive_fusion=power)
        known = [record.name for record in ranking.query.records]
        if names is not None and names != known:
            raise RunError(f"{run} has other queries than {runs[0]}: the runs of a grid must share their test set")
        names = known
        # A model without a head has its global feature alone.
        name = feature if feature in ranking.query.features.features else "global"
        note_not_fused(run, ranking, name)
        sides = ranking.query.labels, ranking.gallery.labels
        if rule is not None:
            ranking = replace(ranking, protocol=Protocol(rule, rule))
        found = rank_metrics(feature_distance(ranking, name), *sides, ranking.protocol)
        rows.append(found.average_precision.numpy())
    if ranking is None:
        raise RunError(f"{folder} has no run with {FEATURES_FILE}")
    records = ranking.query.records
    identity, scene = ([getattr(record, field) or "" for record in records] for field in ("identity", "scene"))
    shown = folder.name + (FUSED if power else "")
    return Cell(shown, np.stack(rows), np.array(identity), np.array(scene), own_power)


def difference(cell: Cell, control: Cell, scene: str | None = None) -> tuple[float, float, float]:
    """Difference in mAP to a control, in percent, and its 95 % interval over identities.

    Raises:
        RunError: the two do not have the same queries.
    """
    if not np.array_equal(cell.identity, control.identity):
        raise RunError(f"{cell.name} and {control.name} have other queries: they must share their test set")
    chosen = cell.of(scene) & control.of(scene)
    if not chosen.any():
        raise RunError(f"no query is of scene {scene!r}; there are {', '.join(sorted(set(cell.scene)))}")
    gain = 100 * (cell.precision.mean(axis=0) - control.precision.mean(axis=0))[chosen]  # (Q,)
    _, group = np.unique(cell.identity[chosen], return_inverse=True)
    total, count = np.bincount(group, weights=gain), np.bincount(group)  # by identity
    drawn = identity_weights(len(count), replicates=REPLICATES, seed=0).astype(np.float64)
    low, high = np.quantile((drawn @ total) / (drawn @ count), (0.025, 0.975))
    return float(gain.mean()), float(low), float(high)


def rows_of(
    cells: Sequence[Cell],
    controls: Sequence[Cell],
    *,
    scenes: Sequence[str],
    others: Mapping[str, Cell],
    rates: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One row per cell: mAP of each seed, all and by scene, differences to the controls, and triplets/s."""
    table = []
    for cell in cells:
        row: dict[str, Any] = {"cell": cell.name, "mAP": {"all": cell.seeds()}, "difference": {}}
        row["mAP"] |= {scene: cell.seeds(scene) for scene in scenes}
        row["other mAP"] = others[cell.name].seeds() if cell.name in others else []
        for control in controls:
            parts = {"all": None, **{scene: scene for scene in scenes}}
            row["difference"][control.name] = {name: difference(cell, control, part) for name, part in parts.items()}
        table.append(row | ({"triplets/s": rates[cell.name]} if cell.name in rates else {}))
    return table


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table; mAP and differences in percent. Without another grid or costs it has no columns for them."""
    parts, controls = list(rows[0]["mAP"]), list(rows[0]["difference"])
    others, costs = any(row["other mAP"] for row in rows), any("triplets/s" in row for row in rows)
    head = ["cell", "seeds", *(f"mAP, {part}" for part in parts), *["mAP, other grid"] * others]
    head += [f"to {control}, {part}" for control in controls for part in parts]
    head += ["ms per triplet", "mAP per ms"] * costs
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        shown = [_spread(row["mAP"][part]) for part in parts] + [_spread(row["other mAP"])] * others
        for control in controls:
            for value, low, high in row["difference"][control].values():
                shown.append("-" if control == row["cell"] else f"{value:+.1f} [{low:+.1f}, {high:+.1f}]")
        cost = 1000 / row["triplets/s"] if "triplets/s" in row else None
        figures = ["", ""] if cost is None else [f"{cost:.3f}", f"{mean(row['mAP']['all']) / cost:.0f}"]
        shown += figures * costs
        lines.append("| " + " | ".join([row["cell"], str(len(row["mAP"]["all"])), *shown]) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else ""
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def read_grid(
    folder: Path, feature: str, rule: Exclusion | None = None, *, power: float = 0.0, parallel: int = 1
) -> dict[str, Cell]:
    """All cells of a grid that have a finished run, by the name of their folder (with a power: and `FUSED`)."""
    finished = {path.parents[1].name for path in folder.glob(f"*/seed*/{FEATURES_FILE}")}
    if not finished:
        raise RunError(f"{folder} has no runs CELL/seedN with {FEATURES_FILE}, which `trireid ablate` makes")
    names = sorted(finished)
    with ThreadPoolExecutor(parallel) as pool:
        folders = [folder / name for name in names]
        cells = pool.map(read_cell, folders, repeat(feature), repeat(rule), repeat(power))
        return {cell.name: cell for cell in cells}


def note_left_out(cells: Sequence[Cell], power: float | None) -> None:
    """One line on the error stream where runs were evaluated with adaptive fusion that is not shown."""
    left_out = sorted({cell.own_power for cell in cells} - {0.0, power})
    if left_out:
        powers = " and ".join(f"{each:g}" for each in left_out)
        sys.stderr.write(
            f"note: some runs were evaluated with evaluate.adaptive_fusion={powers}, which is left out here: "
            f"--adaptive-fusion {left_out[-1]:g} shows every cell with it too\n"
        )


def read_rates(path: Path | None) -> dict[str, float]:
    """Triplets per second by the folder of a cell, of the rows of `trireid bench`."""
    if path is None:
        return {}
    try:
        rows = [row for row in read_results(path, "rows")["rows"] if row["mode"] == "inference"]
        return {cell_folder(row["name"].rpartition(": ")[2]): row["throughput"] for row in rows}
    except (KeyError, TypeError):
        raise RunError(f"{path} has no rows of trireid bench: give the JSON file that its --out wrote") from None


def main() -> None:
    """Read the command line, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the --out folder of trireid ablate")
    parser.add_argument("--against", required=True, help="names of the controls, separated by semicolons")
    parser.add_argument(
        "--feature",
        default="head",
        choices=("global", "head", "joint"),
        help="global, head or joint; global where there is no head",
    )
    parser.add_argument("--scene", action="append", default=[], help="a scene to show apart; repeat for more")
    parser.add_argument("--exclude", choices=get_args(Exclusion), help="camera, scene, cross_camera or none")
    parser.add_argument("--adaptive-fusion", type=float, help="power: show every cell again, ranked with it")
    parser.add_argument("--also", type=Path, help="another grid with the same cells")
    parser.add_argument("--costs", type=Path, help="rows of trireid bench")
    parser.add_argument("--parallel", type=int, default=1, help="cells that are read at the same time")
    parser.add_argument("--out", type=Path, help="file for the rows, as JSON")
    given = parser.parse_args()
    fused = given.adaptive_fusion
    if fused is not None and not 0.0 < fused <= LARGEST_POWER:
        raise RunError(f"--adaptive-fusion is {fused:g}; allowed is a power above 0, at most {LARGEST_POWER:g}")
    cells = {}
    for power in (0.0,) if fused is None else (0.0, fused):
        cells |= read_grid(given.folder, given.feature, given.exclude, power=power, parallel=given.parallel)
    names = [cell_folder(name.strip()) for name in given.against.split(";")]
    if missing := [name for name in names if name not in cells]:
        raise RunError(f"{given.folder} has no finished cell {', '.join(missing)}; there are {', '.join(cells)}")
    others = read_grid(given.also, given.feature, parallel=given.parallel) if given.also else {}
    note_left_out([*cells.values(), *others.values()], fused)
    rows = rows_of(
        list(cells.values()),
        [cells[name] for name in names],
        scenes=given.scene,
        others=others,
        rates=read_rates(given.costs),
    )
    sys.stdout.write(markdown(rows))
    if given.out:
        write_json(given.out, {"feature": given.feature, "rows": rows})


if __name__ == "__main__":
    with guarded():
        main()
