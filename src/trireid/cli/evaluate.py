"""`trireid test` and `test_net.py`: the metrics of a checkpoint on its query and gallery sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trireid.cli.console import is_main_process, note, say, show_metrics, show_reranked, show_rule, with_errors
from trireid.cli.metric_tables import PAGE_START, page, tables
from trireid.cli.options import refuse_contradiction
from trireid.config.load import dump_changes, override_config
from trireid.config.schema import Config
from trireid.errors import ConfigError
from trireid.files import check_own, starts_with, write_json, write_text
from trireid.train.run_files import CheckpointMetrics
from trireid.typed_json import read_object

_log = logging.getLogger(__name__)

LETTERS = {"r": "rgb", "n": "nir", "t": "tir"}


def run_checkpoint(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    missing_cases: bool = False,
    any_to_any: bool = False,
    by: Sequence[str] = (),
    precision: str | None = None,
) -> CheckpointMetrics:
    """Evaluate a checkpoint with the configuration that it holds, some settings changed.

    Args:
        path: a checkpoint, or a run folder, whose last checkpoint is taken.
        overrides: `section.setting=value`.
        out: file for the metrics and the settings they were measured with: Markdown if its name ends in .md, else JSON.
        missing_cases: also a table of every case of missing modalities, and their mean.
        any_to_any: also tables of every subset of modalities as query against every subset as gallery.
        by: columns of the queries that the metrics are also broken down by.
        precision: as of `evaluate_checkpoint`.

    Raises:
        TrireidError: a setting, the checkpoint or the data set is wrong, or the file cannot be written.
    """
    from trireid.train.checkpoint import config_here, load_checkpoint
    from trireid.train.missing_table import check_cases

    refuse_contradiction("precision", precision, "train.precision", overrides)
    saved = config_here(load_checkpoint(path))
    notes = []
    if missing_cases or any_to_any:
        # The tables replace what the run withholds; evaluate.missing in `overrides` contradicts them and is refused.
        overrides = ["evaluate.missing=[]", *overrides]
    config = override_config(saved, overrides)
    if missing_cases or any_to_any:
        check_cases(config)
        if saved.evaluate.missing:
            notes.append(
                f"the run withholds {', '.join(saved.evaluate.missing)} (evaluate.missing); this test does not"
            )
    if out is not None:
        check_own(out, kind="output of trireid test", is_own=_is_output)
    how: dict[str, Any] = {"missing_cases": missing_cases, "any_to_any": any_to_any, "by": by, "precision": precision}
    metrics = run(path, config, notes=notes, **how)
    if out is not None and metrics:
        if out.suffix.lower() == ".md":
            write_text(out, page(metrics))
        else:
            write_json(out, {**metrics, "config": config.model_dump(mode="json")})
        say(f"written: {out}")
    return metrics


def run(
    path: Path,
    config: Config,
    *,
    notes: Sequence[str] = (),
    missing_cases: bool = False,
    any_to_any: bool = False,
    by: Sequence[str] = (),
    precision: str | None = None,
) -> CheckpointMetrics:
    """Evaluate a checkpoint with a resolved configuration; log its changed settings and print the metrics.

    Args:
        path: a checkpoint, or a run folder, whose last checkpoint is taken.
        config: the model, which must be that of the checkpoint, the data set and the kind of evaluation.
        notes: lines to show after the settings.
        missing_cases, any_to_any, by, precision: as in `run_checkpoint`.

    Raises:
        TrireidError: the weights do not fit the configuration, or the data set is wrong.
    """
    from trireid.train.testing import evaluate_checkpoint

    _log.info("settings that differ from the defaults:\n%s", dump_changes(config).rstrip())
    for line in notes:
        note(line)
    metrics = evaluate_checkpoint(
        path,
        config=config,
        progress=is_main_process(),
        missing_cases=missing_cases,
        any_to_any=any_to_any,
        by=by,
        precision=precision,
    )
    if not metrics:  # only the main process has them
        return metrics
    for line in metrics["messages"]:
        note(line)
    saved = f"epoch {metrics['epoch']}" + (f", {metrics['note']}" if metrics["note"] else "")
    say(f"checkpoint: {metrics['checkpoint']} ({saved})")
    counts = f"{metrics['num_queries']} queries, {metrics['num_gallery']} in the gallery"
    show_metrics(f"test split: {counts}", with_errors(metrics))
    show_rule(metrics)
    if note_on_errors := metrics.get("verification", {}).get("note"):
        say(note_on_errors)
    show_reranked("test split", metrics)
    for table in tables(metrics):
        say(f"\n{table}")
    return metrics


def _is_output(path: Path) -> bool:
    if path.suffix.lower() == ".md":
        return starts_with(path, PAGE_START)
    return {"checkpoint", "feature", "config"} <= read_object(path).keys()


def parse_missing(text: str, *, option: str = "--missing") -> list[str]:
    """Modalities from letters (`rn`) or names (`rgb,nir`), in the order rgb, nir, tir; `none` is no modality.

    Raises:
        ConfigError: the text names something else.
    """
    given = text.strip().lower()
    if given in ("", "none", "nothing"):
        return []
    by_name = "," in given or given in LETTERS.values()
    names = [LETTERS.get(part.strip(), part.strip()) for part in (given.split(",") if by_name else given)]
    if len(set(names)) < len(names) or not set(names) <= set(LETTERS.values()):
        others = ", none, or all for every case" if option == "--missing" else ""
        raise ConfigError(f"{option}: given {text}, allowed are r, n, t, rn, rt, nt, names such as rgb,nir{others}")
    return [name for name in LETTERS.values() if name in names]
