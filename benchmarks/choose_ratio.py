"""Choose the ratio of a cut on held-out identities: one model, its cut at several ratios, without more training.

    python benchmarks/choose_ratio.py RUN [RUN ...] [--ratios 1,0.9,...] [--tolerance 0.5] [--out JSON]

needs runs with `data.val_ids` and a learned cut, such as `model.slimming=[{after_block: 4, keep_ratio: 1.0}]`, whose
predictor learns while nothing is dropped. SDTPS needs `model.sdtps.cells`: learned slots have one ratio. For each
ratio: mAP of the joint feature on the held-out identities, mAP on the test split (which does not choose), and the share
of the foreseen attention that stays. The chosen ratio is the smallest that loses no more than the tolerance (points of
mAP) on the held-out identities. A run takes seconds on a GPU, minutes without one.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import torch

from trireid.cli.guard import guarded
from trireid.config.schema import Config
from trireid.errors import ConfigError, InputError
from trireid.evaluation.cut_ratio import choose_ratio, foreseen_share
from trireid.files import check_writable, write_json
from trireid.models.reid import ReIDModel
from trireid.train.checkpoint import build_for, config_here, load_checkpoint
from trireid.train.device import autocast_dtype, resolve_device, resolve_precision
from trireid.train.evaluating import evaluate_split
from trireid.train.inputs import EvaluationSplit, open_inputs

RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
FEATURES = ("joint", "global")


def with_ratio(config: Config, ratio: float) -> Config:
    """The configuration with its last cut at another ratio.

    Raises:
        ConfigError: there is no learned cut.
    """
    cuts = config.model.slimming
    if not cuts or cuts[-1].guidance not in ("learned", "consensus"):
        raise ConfigError(
            "the run has no learned cut: train it with model.slimming=[{after_block: 4, keep_ratio: 1.0}]"
        )
    changed = (*cuts[:-1], cuts[-1].model_copy(update={"keep_ratio": ratio}))
    return config.model_copy(update={"model": config.model.model_copy(update={"slimming": changed})})


def share_kept(model: ReIDModel, split: EvaluationSplit, *, device: torch.device) -> float:
    """Mean share of the foreseen attention that the last cut keeps, over the first batch of a split."""
    batch = next(iter(split.query_loader)).to(device)
    with torch.inference_mode():
        output = model(split.transform(batch.images, batch.present), batch.present, batch.camera)
    cut = [chosen for name, chosen in output.selection.items() if name.startswith("block")][-1]
    return float(foreseen_share(cut.scores, cut.mask)[output.present].mean())


def measure(run: Path, ratios: tuple[float, ...]) -> dict[float, tuple[float, float, float]]:
    """By ratio: mAP on held-out identities, mAP on the test split, share of the foreseen attention that stays.

    Raises:
        ConfigError: the run holds out no identities, or has no learned cut.
    """
    checkpoint = load_checkpoint(run)
    config = config_here(checkpoint)
    device = resolve_device(config.train.device)
    dtype = autocast_dtype(resolve_precision(config.train.precision, device))
    if config.model.head == "sdtps" and config.model.sdtps.cells is None:
        raise ConfigError(
            f"{run} has learned slots of SDTPS, whose number follows from that of the patches, so that its cut cannot "
            "have another ratio: train it with model.sdtps.cells=[2,2], or with another head"
        )
    inputs = open_inputs(with_ratio(config, 1.0), device=device)
    if inputs.validation is None:
        raise ConfigError(f"{run} holds out no identities: train it with data.val_ids=N")
    found = {}
    for ratio in ratios:
        model = build_for(checkpoint, with_ratio(config, ratio)).to(device).eval()
        values = []
        for split in (inputs.validation, inputs.test):
            result = evaluate_split(model, split, settings=config.evaluate, device=device, dtype=dtype, progress=False)
            assert result is not None, "one process"
            values.append(next(result.metrics[name]["mAP"] for name in FEATURES if name in result.metrics))
        found[ratio] = (values[0], values[1], share_kept(model, inputs.validation, device=device))
    return found


def checked_ratios(text: str) -> tuple[float, ...]:
    """The ratios of the command line, each once.

    Raises:
        InputError: one is no number in (0, 1].
    """
    try:
        ratios = tuple(dict.fromkeys(float(value) for value in text.split(",")))
    except ValueError:
        ratios = ()
    if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
        raise InputError(f"--ratios is {text!r}; give numbers above 0 and at most 1, separated by commas")
    return ratios


def main() -> None:
    """Measure every run, print the table and the chosen ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)), help="separated by commas")
    parser.add_argument("--tolerance", type=float, default=0.5, help="points of mAP")
    parser.add_argument("--out", type=Path, help="file for the numbers, as JSON")
    given = parser.parse_args()
    found: dict[float, list[tuple[float, float, float]]] = defaultdict(list)
    ratios = checked_ratios(given.ratios)
    choose_ratio({1.0: [0.0]}, tolerance=given.tolerance / 100)  # refuses a tolerance before minutes of work
    if given.out:
        check_writable(given.out)
    for run in given.runs:
        for ratio, values in measure(run, ratios).items():
            found[ratio].append(values)
    chosen = choose_ratio(
        {ratio: [row[0] for row in rows] for ratio, rows in found.items()}, tolerance=given.tolerance / 100
    )
    lines = ["mAP of the joint feature, as the runs are evaluated (centring, adaptive fusion):", ""]
    lines += ["| ratio | mAP, held out | mAP, test | foreseen attention kept |", "|---|---|---|---|"]
    for ratio, rows in sorted(found.items(), reverse=True):
        held_out, test, share = (100 * mean(column) for column in zip(*rows, strict=True))
        lines.append(f"| {ratio:g} | {held_out:.1f} | {test:.1f} | {share:.0f} % |")
    sys.stdout.write("\n".join([*lines, "", f"chosen: {chosen:g}", ""]))
    if given.out:
        write_json(given.out, {"chosen": chosen, "ratios": {str(ratio): rows for ratio, rows in found.items()}})


if __name__ == "__main__":
    with guarded():
        main()
