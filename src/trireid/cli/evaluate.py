"""`trireid test` and `test_net.py`: the figures of a checkpoint on its query and gallery."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from trireid.cli.console import is_main_process, note, say, show_figures, show_reranked, show_rule
from trireid.cli.missing import page, tables
from trireid.config.load import dump_changes, override_config
from trireid.config.schema import Config
from trireid.errors import ConfigError
from trireid.files import check_writable, write_json, write_text
from trireid.train.run_files import CheckpointMetrics

_log = logging.getLogger(__name__)

LETTERS = {"r": "rgb", "n": "nir", "t": "tir"}


def run_checkpoint(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    missing_cases: bool = False,
    any_to_any: bool = False,
) -> CheckpointMetrics:
    """Evaluate a checkpoint with the configuration it carries, some settings changed.

    Args:
        path: a checkpoint, or a run folder, whose last checkpoint is taken.
        overrides: `section.setting=value`.
        out: file for the figures and the settings they were measured with: Markdown where its name ends in .md, else
            JSON.
        missing_cases: a table of every case of missing modalities, and its mean.
        any_to_any: tables of every subset of modalities as query against every subset as gallery.

    Raises:
        TrireidError: a setting, the checkpoint or the data set is wrong, or the file cannot be written.
    """
    from trireid.train.checkpoint import config_here, load_checkpoint
    from trireid.train.missing_table import check_cases

    saved = config_here(load_checkpoint(path))
    notes = []
    if missing_cases or any_to_any:
        # What the run withholds gives way to the tables; what is asked for beside them contradicts them.
        overrides = ["evaluate.missing=[]", *overrides]
    config = override_config(saved, overrides)
    if missing_cases or any_to_any:
        check_cases(config)
        if saved.evaluate.missing:
            notes.append(f"the run withholds {', '.join(saved.evaluate.missing)} (evaluate.missing); here nothing is")
    if out is not None:
        check_writable(out)
    figures = run(path, config, notes=notes, missing_cases=missing_cases, any_to_any=any_to_any)
    if out is not None and figures:
        if out.suffix.lower() == ".md":
            write_text(out, page(figures))
        else:
            write_json(out, {**figures, "config": config.model_dump(mode="json")})
        say(f"written: {out}")
    return figures


def run(
    path: Path,
    config: Config,
    *,
    notes: Sequence[str] = (),
    missing_cases: bool = False,
    any_to_any: bool = False,
) -> CheckpointMetrics:
    """Evaluate a checkpoint with a resolved configuration; log its changed settings and print the figures.

    Args:
        path: a checkpoint, or a run folder, whose last checkpoint is taken.
        config: what is evaluated and how; its model must be the checkpoint's.
        notes: lines to show beside the settings.
        missing_cases, any_to_any: as in `run_checkpoint`.

    Raises:
        TrireidError: the weights do not fit the configuration, or the data set is wrong.
    """
    from trireid.train.testing import evaluate_checkpoint

    _log.info("settings that differ from the defaults:\n%s", dump_changes(config).rstrip())
    for line in notes:
        note(line)
    figures = evaluate_checkpoint(
        path, config=config, progress=is_main_process(), missing_cases=missing_cases, any_to_any=any_to_any
    )
    if not figures:  # of several processes, the main one has them
        return figures
    for line in figures["messages"]:
        note(line)
    saved = f"epoch {figures['epoch']}" + (f", {figures['note']}" if figures["note"] else "")
    say(f"checkpoint: {figures['checkpoint']} ({saved})")
    counts = f"{figures['num_queries']} queries, {figures['num_gallery']} in the gallery"
    show_figures(f"test split: {counts}", figures["feature"])
    show_rule(figures)
    show_reranked("test split", figures)
    for table in tables(figures):
        say(f"\n{table}")
    return figures


def parse_missing(text: str) -> list[str]:
    """Modalities by letters (`rn`) or names (`rgb,nir`), in the order rgb, nir, tir; `none` is no modality.

    Raises:
        ConfigError: if it names something else.
    """
    wanted = text.strip().lower()
    if wanted in ("", "none", "nothing"):
        return []
    by_name = "," in wanted or wanted in LETTERS.values()
    names = [LETTERS.get(part.strip(), part.strip()) for part in (wanted.split(",") if by_name else wanted)]
    if len(set(names)) < len(names) or not set(names) <= set(LETTERS.values()):
        raise ConfigError(
            f"--missing: given {text}, allowed are r, n, t, rn, rt, nt, names such as rgb,nir, none, or all"
            " for every case"
        )
    return [name for name in LETTERS.values() if name in names]
