r"""Chooses a recipe for tno_scenes on its training split: whole scenes are held out, the test split is never looked at.

Three rounds of a search, each over fewer cells: pairs of scenes held out, then single scenes, then another seed. A cell
is ranked by the mean of mAP under the two rules, of its best feature. Runs that are done are not repeated.

    python benchmarks/tno_recipe.py --root data/tno_scenes --out runs/tno_recipe --parallel 10  (TNO; minutes on a GPU)

`--shift` shows what a scene costs that was not trained on: half of its identities are ranked by models that were
trained without this scene, and by models that were trained with its other half.

    python benchmarks/tno_recipe.py --root data/tno_scenes --out runs/tno_shift --shift --parallel 10 \
        --config configs/trireid/tno_scenes/recipe.yaml  (TNO; on a GPU)
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from json_results import read_results
from landsat_yardsticks import RULES, pixel_features

from trireid.ablation import file_cells
from trireid.cli.guard import guarded
from trireid.config.load import load_config, override_config
from trireid.config.schema import Config
from trireid.data.labels import rank_labels
from trireid.data.readers import scan
from trireid.data.records import Record
from trireid.errors import RunError
from trireid.evaluation.centring import centred_by_camera
from trireid.evaluation.evaluate import evaluate_features
from trireid.evaluation.feature_files import load_features
from trireid.evaluation.metrics import pairwise_distance, rank_metrics
from trireid.train.loop import train
from trireid.types import NUM_MODALITIES, Protocol

PAIRS = (("Marne_03", "barbed_wire_1"), ("Marne_04", "Kaptein_01"))
SINGLE = (("Marne_04",), ("Marne_03",), ("barbed_wire_1",), ("Kaptein_01",))
LATER = ((10, SINGLE, 1), (4, SINGLE, 2))
"""Of the rounds after the first: cells that are left, scenes held out, seed."""
QUICK = ("train.compile=false", "train.trackers=[]", "train.maps_every=0", "data.cache=disk", "data.workers=1")
SHIFT_SEEDS = (1, 2, 3)
Pool = ProcessPoolExecutor


@dataclass(frozen=True)
class Task:
    """One run: a cell, the scenes that are held out, and a seed.

    `part` is what is tested of these scenes: `all` of their identities; or every second one, with the others left out
    (`without`) or in the training set (`with`).
    """

    cell: str
    overrides: tuple[str, ...]
    held_out: tuple[str, ...]
    seed: int
    part: str = "all"

    @property
    def fold(self) -> str:
        """The name of its data."""
        return "+".join((*self.held_out, self.part))

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.cell} | {self.fold} | {self.seed}"

    def split(self, record: Record) -> str | None:
        """The split that a record of the training set is in; None: it is left out."""
        if record.scene not in self.held_out:
            return "train"
        if self.part == "all" or int(record.identity) % 2:
            return "test"
        return "train" if self.part == "with" else None


def image_files(record: Record) -> list[str]:
    """The paths of the images of an item, all three.

    Raises:
        RunError: it lacks an image.
    """
    paths = [str(source.path.resolve()) for source in record.images if source is not None]
    if len(paths) < NUM_MODALITIES:
        raise RunError(f"{paths[0]} lacks an image of another spectrum: every item of this set needs all three")
    return paths


def write_fold(
    records: Sequence[Record], task: Task, path: Path, *, files: Callable[[Record], list[str]] = image_files
) -> None:
    """A CSV manifest of the training split, divided for a task; `files` are the images of an item."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["rgb", "nir", "tir", "id", "camera", "scene", "split"])
        for record in records:
            if split := task.split(record):
                table.writerow([*files(record), record.identity, record.camera, record.scene, split])


def run_config(task: Task, config: Path, *, fold: Path, cache: Path, output: Path) -> Config:
    """The settings of a task: a file, its overrides and its data, evaluated and saved once."""
    settings = [f"data.root={fold}", "data.format=csv", f"data.cache_folder={cache}", f"output={output}"]
    made = load_config(config, [*task.overrides, *settings, *QUICK, f"train.seed={task.seed}"])
    return override_config(made, [f"train.{name}_every={made.train.epochs}" for name in ("evaluate", "checkpoint")])


def pixels(root: Path, task: Task) -> dict[str, float]:
    """MAP of pixel correlation of all three on the test split of a task, by rule; `queries` is their number."""
    records = [record for record in scan("tno_scenes", root).train if task.split(record) == "test"]
    labels, _ = rank_labels(records, records)
    features = pixel_features(records).flatten(1)
    distance = pairwise_distance(features, features)
    by_rule = {rule: rank_metrics(distance, labels, labels, Protocol(rule, rule)).as_dict()["mAP"] for rule in RULES}
    return {**by_rule, "queries": len(records)}


def run_task(task: Task, config: Path, fold: Path, scratch: Path) -> dict[str, Any]:
    """Train and evaluate one run; the metrics of each rule, as they are and centred by camera."""
    started = time.perf_counter()
    output = Path(tempfile.mkdtemp(dir=scratch))
    train(run_config(task, config, fold=fold, cache=scratch / "cache", output=output), progress=False)
    ranking = load_features(output)
    shutil.rmtree(output)
    found: dict[str, dict[str, float]] = {}
    for centring, given in (("none", ranking), ("camera", centred_by_camera(ranking))):
        for rule in RULES:
            result = evaluate_features(replace(given, protocol=Protocol(rule, rule)))
            for feature, metrics in result.metrics.items():
                found.setdefault(f"{feature}, {centring}", {})[rule] = metrics["mAP"]
    return {"mAP": found, "queries": len(ranking.query), "seconds": time.perf_counter() - started}


def run_all(
    tasks: Sequence[Task], results: dict[str, Any], pool: Pool, *, given: argparse.Namespace, end: float
) -> None:
    """Run the tasks that have no result yet, until the time is over; results are kept in the file at once."""
    waiting: dict[Future[dict[str, Any]], Task] = {}
    for task in tasks:
        if task.key not in results:
            fold = given.scratch / f"{task.fold}.csv"
            if not fold.is_file():
                write_fold(scan("tno_scenes", given.root).train, task, fold)
            waiting[pool.submit(run_task, task, given.config, fold, given.scratch)] = task
    try:
        for future in as_completed(waiting, timeout=max(0.0, end - time.monotonic())):
            task = waiting[future]
            error = future.exception()
            if error is not None:
                print(f"{task.key}: {error}", file=sys.stderr)
                continue
            results[task.key] = future.result()
            (given.out / "results.json").write_text(json.dumps(results, indent=1))
    except LateError:
        print("the time is over: run again to complete the table", file=sys.stderr)
        for future in waiting:
            future.cancel()


def score(tasks: Sequence[Task], results: dict[str, Any], cell: str, feature: str, rule: str) -> float:
    """MAP of a feature of a cell over all queries of its runs that are done; nan where there is none."""
    done = [results[task.key] for task in tasks if task.cell == cell and task.key in results]
    pairs = [(each["queries"], each["mAP"][feature][rule]) for each in done if feature in each["mAP"]]
    return sum(n * value for n, value in pairs) / sum(n for n, _ in pairs) if pairs else float("nan")


def best_feature(tasks: Sequence[Task], results: dict[str, Any], cell: str, centring: str) -> tuple[float, str]:
    """The best feature of a cell: its mean over the rules, and its name."""
    names = [f"{name}, {centring}" for name in ("global", "head", "joint")]
    scored = [(mean(score(tasks, results, cell, name, rule) for rule in RULES), name) for name in names]
    return max((pair for pair in scored if pair[0] == pair[0]), default=(float("-inf"), "-"))


def table(tasks: Sequence[Task], results: dict[str, Any], cells: Sequence[str]) -> str:
    """Markdown: every cell of a round, the best first, mAP in percent under both rules."""
    lines = ["| cell | runs | feature | camera | cross_camera | centred by camera: feature | camera | cross_camera |"]
    lines.append("|---|---:|---|---:|---:|---|---:|---:|")
    for cell in sorted(cells, key=lambda name: -best_feature(tasks, results, name, "none")[0]):
        own = [task for task in tasks if task.cell == cell]
        row = [cell, str(sum(task.key in results for task in own))]
        for centring in ("none", "camera"):
            _, name = best_feature(own, results, cell, centring)
            row += [name.split(",")[0], *(f"{100 * score(own, results, cell, name, rule):.1f}" for rule in RULES)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def search(given: argparse.Namespace, cells: dict[str, tuple[str, ...]], results: dict[str, Any], pool: Pool) -> None:
    """All rounds, each printed as a table."""
    end, names = time.monotonic() + given.limit, list(cells)
    for count, folds, seed in [(len(names), PAIRS, 1), *LATER][: given.rounds]:
        names = names[:count]
        tasks = [Task(cell, (*cells[cell], *given.settings), fold, seed) for fold in folds for cell in names]
        run_all(tasks, results, pool, given=given, end=end)
        known = [pixels(given.root, task) for task in tasks if task.cell == names[0]]
        total = sum(each["queries"] for each in known)
        yardstick = [100 * sum(each["queries"] * each[rule] for each in known) / total for rule in RULES]
        row = f"| pixel correlation | | | {yardstick[0]:.1f} | {yardstick[1]:.1f} | | | |"
        show(given.out, f"held out: {', '.join('+'.join(fold) for fold in folds)}; seed {seed}",
             f"{table(tasks, results, names)}\n{row}")  # fmt: skip
        if time.monotonic() > end:
            break
        names.sort(key=lambda name: -best_feature(tasks, results, name, "none")[0])


def shift(given: argparse.Namespace, results: dict[str, Any], pool: Pool) -> None:
    """What it costs that a scene was not trained on, by scene."""
    tasks = [
        Task("start", tuple(given.settings), scene, seed, part)
        for scene in SINGLE
        for part in ("without", "with")
        for seed in SHIFT_SEEDS
    ]
    run_all(tasks, results, pool, given=given, end=time.monotonic() + given.limit)
    lines = ["| scene | rule | pixel correlation | trained without the scene | trained with half of it |"]
    lines.append("|---|---|---:|---:|---:|")
    name = best_feature(tasks, results, "start", "none")[1]
    for scene in SINGLE:
        yardstick = pixels(given.root, next(task for task in tasks if task.held_out == scene))
        for rule in RULES:
            row = [scene[0], rule, f"{100 * yardstick[rule]:.1f}"]
            for part in ("without", "with"):
                own = [task for task in tasks if (task.held_out, task.part) == (scene, part) and task.key in results]
                values = [100 * results[task.key]["mAP"][name][rule] for task in own]
                row.append(f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else "-")
            lines.append("| " + " | ".join(row) + " |")
    show(given.out, f"feature {name}", "\n".join(lines))


def show(out: Path, title: str, text: str) -> None:
    """Print a table, and add it to the file of tables."""
    print(f"\n{title}\n\n{text}", flush=True)
    with (out / "tables.md").open("a") as file:
        file.write(f"\n{title}\n\n{text}\n")


def main() -> None:
    """Read the command line and search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root, out = Path("data/tno_scenes"), Path("runs/tno_recipe")
    config, cells_file = Path("configs/trireid/tno_scenes/start.yaml"), Path("benchmarks/tno_recipe.yaml")
    parser.add_argument("--root", type=Path, default=root, help=f"folder of tno_scenes; default: {root}")
    parser.add_argument("--out", type=Path, default=out, help=f"folder for results and tables; default: {out}")
    parser.add_argument("--config", type=Path, default=config, help=f"that all cells start from; default: {config}")
    parser.add_argument("--cells", type=Path, default=cells_file, help=f"YAML file of cells; default: {cells_file}")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time")
    parser.add_argument("--limit", type=float, default=1e6, help="seconds after which no further run is waited for")
    parser.add_argument("--rounds", type=int, default=3, help="of the search, at most 3; default: 3")
    parser.add_argument("--shift", action="store_true", help="the second table, of the configuration as it is")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of all cells")
    given = parser.parse_args()
    cells = {cell.name: cell.overrides for cell in file_cells(given.cells)}
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "results.json"
    results = read_results(path) if path.is_file() else {}
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="tno-", dir=memory) as scratch,
        ProcessPoolExecutor(given.parallel, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        given.scratch = Path(scratch)
        if given.shift:
            shift(given, results, pool)
        else:
            search(given, cells, results, pool)


if __name__ == "__main__":
    with guarded():
        main()
