"""What products in 8-bit floating point (e4m3) cost trained runs: features, choices of patches and mAP, beside bf16.

Folders of `trireid ablate`, or runs; needs a GPU of compute capability 8.9 or later, seconds for each run:

python benchmarks/fp8_accuracy.py runs/fp8/synthetic runs/fp8/tno --out runs/fp8_accuracy.json

A cut chooses patches by scores, and where two are nearly equal the least rounding decides. So three things are shown:
the cosine to the features in bf16; the same with the choices of bf16 imposed, which is what the products alone cost;
and the share of the patches kept that are others. Row fp32 is the control: what bf16 itself changes in this way.
Variants are as in benchmarks/fp8.py. The file is written after each run, and runs that it has are not repeated.
benchmarks/fp8_trained.sh trains the runs, on the synthetic set and on the scene patches of TNO.
"""

from __future__ import annotations

import copy
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from json_results import read_results
from torch import Tensor, nn

from trireid.benchmark import describe_machine
from trireid.cli.guard import guarded
from trireid.config.schema import Config
from trireid.data.labels import LabelMap
from trireid.errors import InputError, RunError, TrireidError
from trireid.evaluation.features import run_model
from trireid.files import check_writable, write_json
from trireid.models import slimming
from trireid.models.low_precision import PRODUCTS, use_float8
from trireid.models.reid import ReIDModel
from trireid.models.slimming import RowTokens, SlimmingStage
from trireid.train.checkpoint import build_for, load_checkpoint
from trireid.train.device import resolve_device
from trireid.train.evaluating import evaluate_split
from trireid.train.inputs import EvaluationSplit, open_test, scan_index
from trireid.train.run_files import METRICS_FILE
from trireid.types import Batch, ReIDOutput, Selection

BF16 = torch.bfloat16
VARIANTS = ("qkv+fc1+fc2", "qkv+fc1+fc2@4-11")
Row = dict[str, Any]


@contextmanager
def reported(what: str, failures: list[str]) -> Iterator[None]:
    """Report an error of one part and go on: the machine's time is short."""
    try:
        yield
    except (RuntimeError, ValueError, OSError, AssertionError, TrireidError, ImportError, KeyError, TypeError) as error:
        failures.append(f"{what}: {type(error).__name__}: {str(error).strip()[:600]}")
        typer.echo(f"FAILED {failures[-1]}")


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on the device."""
    return torch.autocast(device.type, dtype=BF16)


def all_float8(model: ReIDModel, calibrate: Callable[[ReIDModel], object]) -> ReIDModel:
    """A copy of the model with every product of its blocks in e4m3."""
    changed = copy.deepcopy(model)
    use_float8(changed.backbone.vit, lambda: calibrate(changed), products=PRODUCTS)
    return changed


def check_variant(variant: str) -> tuple[Sequence[str], int, int]:
    """The products of a variant, and its first and last block.

    Raises:
        InputError: it names others, or its blocks are no numbers.
    """
    names, at, between = variant.partition("@")
    chosen = PRODUCTS if names == "all" else names.split("+")
    if not set(chosen) <= set(PRODUCTS):
        raise InputError(f"variant {variant!r}: products are {', '.join(PRODUCTS)}, or all")
    if not at:
        return chosen, 0, sys.maxsize
    first, _, last = between.partition("-")
    if not first.isdecimal() or not last.isdecimal() or int(first) > int(last):
        raise InputError(f"variant {variant!r}: blocks are FIRST-LAST, counted from 0, such as 4-11")
    return chosen, int(first), int(last)


def of_variant(variant: str, converted: ReIDModel, model: ReIDModel) -> ReIDModel:
    """A copy of the converted model that has only the products of a variant in e4m3, the others as in the model."""
    chosen, first, last = check_variant(variant)
    changed = copy.deepcopy(converted)
    for number, block in enumerate(changed.backbone.vit.blocks):
        for product in PRODUCTS:
            if product not in chosen or not first <= number <= last:
                part = "attn" if product in ("qkv", "proj") else "mlp"
                plain = getattr(getattr(model.backbone.vit.blocks[number], part), product)
                setattr(getattr(block, part), product, copy.deepcopy(plain))
    return changed


def agreement(first: Tensor, second: Tensor, ending: str = "") -> Row:
    """Cosine of two sets of features `(n, D)`."""
    cosine = nn.functional.cosine_similarity(first.float(), second.float())
    return {f"cosine{ending}": float(cosine.mean()), f"lowest_cosine{ending}": float(cosine.min())}


class Choices:
    """Notes which patches the cuts of a model keep, or makes it keep those that another noted, batch by batch.

    Attributes:
        kept: for each batch, by cut, `(B, M, N)` bool over the original grid, on the CPU.
    """

    def __init__(self, model: ReIDModel, given: Choices | None = None) -> None:
        self.model, self.given = model, given
        self.kept: list[list[Tensor]] = []
        self._stage, self._rows = 0, torch.empty(0, dtype=torch.int64)

    def __enter__(self) -> Choices:
        self.model.backbone._cut = self._cut
        return self

    def __exit__(self, *error: object) -> None:
        self.model.backbone._cut = slimming.cut

    def of(self, call: Callable[[], ReIDOutput], present: Tensor) -> ReIDOutput:
        """The output of a call with one batch, whose presence is `(B, M)` bool."""
        self._stage, self._rows = 0, present.flatten().nonzero()[:, 0].cpu()
        output = call()
        cuts = [chosen.mask.cpu() for name, chosen in output.selection.items() if name.startswith("block")]
        self.kept.append(cuts)
        return output

    def run(self, model: nn.Module, batch: Batch, *, present: Tensor, **options: Any) -> ReIDOutput:
        """As `evaluation.features.run_model`."""
        return self.of(lambda: run_model(model, batch, present=present, **options), present)

    def _cut(self, tokens: RowTokens, stage: SlimmingStage, *, scores: Tensor, **options: Any) -> Any:
        if self.given is not None:
            imposed = self.given.kept[len(self.kept)][self._stage].flatten(0, 1)[self._rows].to(scores.device)
            # The weights of the dropped patches in the fused token stay those of their own scores.
            scores = scores.masked_fill(imposed.gather(1, tokens.positions), 1e9)
        self._stage += 1
        cut: tuple[RowTokens, Selection] = slimming.cut(tokens, stage, scores=scores, **options)
        return cut


def changed_choices(found: Choices, expected: Choices, count: int) -> tuple[list[float], Tensor]:
    """By cut the share of the patches kept that the others did not keep, and which of the first items `(count,)` agree.

    The items are in the order of the loader.
    """
    stages = zip(*found.kept, strict=True), zip(*expected.kept, strict=True)
    shares, same = [], torch.ones(count, dtype=torch.bool)
    for these, those in zip(*stages, strict=True):
        mine, other = torch.cat(these)[:count], torch.cat(those)[:count]  # (n, M, N)
        shares.append(float((mine & ~other).sum() / other.sum()))
        same &= (mine == other).flatten(1).all(dim=1)
    return shares, same


def accuracy(
    name: str,
    model: ReIDModel,
    settings: Config,
    label_map: LabelMap,
    variants: Sequence[str],
    *,
    device: torch.device,
    failures: list[str],
) -> list[Row]:
    """Rows of bf16, fp32 and all variants on the test split of the settings, each beside bf16."""
    model = model.to(device).eval()
    split = open_test(settings, scan_index(settings), label_map, device=device)

    def calibrate(changed: ReIDModel) -> None:
        batch = next(iter(split.query_loader)).to(device)
        with autocast(device):
            changed(split.transform(batch.images, batch.present), present=batch.present, camera=batch.camera)

    converted = all_float8(model, calibrate) if variants else model
    reference = _evaluated(model, split, settings, device, BF16)
    rows = [{"data": name, "variant": "bf16", **reference[2], **agreement(reference[0], reference[0])}]
    for variant in ("fp32", *variants):
        with reported(f"{name}, {variant}", failures):
            each = model if variant == "fp32" else of_variant(variant, converted, model)
            dtype = None if variant == "fp32" else BF16
            feature, choices, metrics = _evaluated(each, split, settings, device, dtype)
            row = {"data": name, "variant": variant, **metrics, **agreement(feature, reference[0])}
            row["mAP_lost"] = rows[0]["mAP"] - row["mAP"]
            if model.backbone.stages:
                row["changed"], same = changed_choices(choices, reference[1], len(feature))
                row["same_items"] = float(same.float().mean())
                if same.any():
                    row |= agreement(feature[same], reference[0][same], "_same")
                given, _, metrics = _evaluated(each, split, settings, device, dtype, given=reference[1])
                row |= agreement(given, reference[0], "_given") | {"mAP_given": metrics["mAP"]}
            rows.append(row)
    return rows


def _evaluated(
    model: ReIDModel,
    split: EvaluationSplit,
    settings: Config,
    device: torch.device,
    dtype: torch.dtype | None,
    given: Choices | None = None,
) -> tuple[Tensor, Choices, Row]:
    """Features of the queries, the choices, and mAP and rank-1 in percent."""
    with Choices(model, given) as choices:
        options: Row = {"settings": settings.evaluate, "device": device, "dtype": dtype, "progress": False}
        result = evaluate_split(model, split, run=choices.run, **options)
    assert result is not None
    features = result.source.query.features.features
    feature = "joint" if "joint" in features else "global"
    metrics = result.metrics.get(feature, result.metrics["global"])
    return features[feature], choices, {"mAP": 100 * metrics["mAP"], "rank1": 100 * metrics["rank1"]}


def compare_choices(model: ReIDModel, variants: dict[str, ReIDModel], images: Tensor) -> list[Row]:
    """Rows of fp32 and variants beside the model in bf16, of images `(B, M, 3, H, W)`, without a set of data."""

    def of(each: ReIDModel, given: Choices | None, *, enabled: bool) -> tuple[Tensor, Choices]:
        present = torch.ones(images.shape[:2], dtype=torch.bool)
        cast = torch.autocast(images.device.type, dtype=BF16, enabled=enabled)
        with Choices(each, given) as choices, torch.inference_mode(), cast:
            output = choices.of(lambda: each(images), present)
        return output.features["global"], choices

    expected, reference = of(model, None, enabled=True)
    rows = []
    for name, each in {"fp32": model, **variants}.items():
        feature, choices = of(each, None, enabled=name != "fp32")
        row = {"variant": name, **agreement(feature, expected)}
        row["changed"], same = changed_choices(choices, reference, len(images))
        given, _ = of(each, reference, enabled=name != "fp32")
        rows.append(row | agreement(given, expected, "_given") | {"same_items": float(same.float().mean())})
    return rows


def show(rows: Sequence[Row], columns: dict[str, str]) -> None:
    """Rows as a Markdown table."""
    typer.echo("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        cells = (_cell(row[key], form) if row.get(key) is not None else "-" for key, form in columns.items())
        typer.echo("| " + " | ".join(cells) + " |")


def _cell(value: Any, form: str) -> str:
    return " / ".join(format(each, form) for each in value) if isinstance(value, list) else format(value, form)


def summary(rows: Sequence[Row]) -> list[Row]:
    """The mean over the seeds of each grid, cell and variant; `worst` is the largest mAP that a seed lost."""
    found = []
    keys = dict.fromkeys((row["grid"], row["cell"], row["variant"]) for row in rows)
    for grid, cell, variant in keys:
        group = [row for row in rows if (row["grid"], row["cell"], row["variant"]) == (grid, cell, variant)]
        one: Row = {"runs": f"{grid}, {cell}", "variant": variant, "seeds": len(group)}
        for key in ("mAP", "rank1", "mAP_lost", "cosine", "cosine_given", "cosine_same", "same_items", "mAP_given"):
            values = [row[key] for row in group if key in row]
            one[key] = mean(values) if values else None
            one[f"{key}_sd"] = stdev(values) if len(values) > 1 else None
        lost, lowest = [row["mAP_lost"] for row in group if "mAP_lost" in row], [row["lowest_cosine"] for row in group]
        one |= {"worst": max(lost, default=None), "lowest_cosine": min(lowest)}
        shares = [[100 * share for share in row["changed"]] for row in group if "changed" in row]
        one["changed, %"] = [mean(each) for each in zip(*shares, strict=True)] or None
        found.append(one)
    return found


SUMMARY = {
    "runs": "", "variant": "", "seeds": "", "mAP": ".2f", "mAP_sd": ".2f", "rank1": ".2f", "mAP_lost": ".2f",
    "mAP_lost_sd": ".2f", "worst": ".2f", "cosine": ".5f", "lowest_cosine": ".4f", "cosine_given": ".5f",
    "cosine_same": ".5f", "changed, %": ".1f", "same_items": ".3f", "mAP_given": ".2f",
}  # fmt: skip


def runs_below(folder: Path) -> list[Path]:
    """The finished runs of a folder of `trireid ablate`, or the folder itself if it is a run."""
    return sorted(path.parent for path in folder.glob(f"**/{METRICS_FILE}"))


def place(path: Path, folder: Path) -> Row:
    """The names that a run has among the rows."""
    return {"grid": folder.name, "cell": path.parent.name if path != folder else "", "run": path.name}


def of_run(path: Path, folder: Path, variants: Sequence[str], device: str) -> tuple[list[Row], list[str]]:
    """Rows of one run, and what failed; in a process of its own."""
    torch.set_num_threads(1)
    failures: list[str] = []
    rows: list[Row] = []
    with reported(str(path), failures):
        checkpoint = load_checkpoint(path)
        model = build_for(checkpoint, checkpoint.config)
        given: Row = {"device": resolve_device(device), "failures": failures}
        rows = accuracy(
            f"{path.parent.name}, {path.name}", model, checkpoint.config, checkpoint.label_map, variants, **given
        )
    return [{**place(path, folder), **row} for row in rows], failures


def main(
    folders: Annotated[list[Path], typer.Argument(help="of trireid ablate, or runs")],
    variant: Annotated[list[str] | None, typer.Option(help="as in benchmarks/fp8.py; repeat")] = None,
    parallel: Annotated[int, typer.Option(help="runs at once on the GPU")] = 4,
    device: Annotated[str, typer.Option(help="cpu only tries the script")] = "cuda",
    out: Annotated[Path | None, typer.Option(help="JSON file")] = None,
) -> None:
    """Print a Markdown table of all runs and their means over the seeds; write everything as JSON."""
    began, failures = time.perf_counter(), list[str]()
    for each in variant or VARIANTS:
        check_variant(each)
    if out is not None:
        check_writable(out)
    rows: list[Row] = read_results(out, "runs")["runs"] if out is not None and out.is_file() else []
    found: dict[str, Any] = {"machine": describe_machine(resolve_device(device)), "summary": summary(rows)}
    found |= {"runs": rows, "failures": failures}
    known = {(row["grid"], row["cell"], row["run"]) for row in rows}
    tasks = [(path, folder) for folder in folders for path in runs_below(folder)]
    tasks = [task for task in tasks if tuple(place(*task).values()) not in known]
    if not tasks and not rows:
        raise typer.BadParameter(f"no finished run below {', '.join(map(str, folders))}")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(parallel, len(tasks))), mp_context=context) as pool:
        jobs = [pool.submit(of_run, path, folder, variant or VARIANTS, device) for path, folder in tasks]
        for job in as_completed(jobs):
            with reported("a run", failures):
                more, failed = job.result()
                rows += more
                failures += failed
            rows.sort(key=lambda row: (row["grid"], row["cell"], row["run"]))
            found["summary"] = summary(rows)
            if out is not None:
                write_json(out, found)
            typer.echo(f"[{time.perf_counter() - began:.0f} s] {len(rows)} rows, {len(failures)} failures")
    show(rows, {"data": "", "variant": "", "mAP": ".2f", "mAP_lost": ".2f", "cosine": ".5f", "cosine_given": ".5f"})
    show(found["summary"], SUMMARY)
    if failures:
        raise RunError(f"{len(failures)} parts failed, the first with {failures[0]}")


if __name__ == "__main__":
    with guarded():
        typer.run(main)
