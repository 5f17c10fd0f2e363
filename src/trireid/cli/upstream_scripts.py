"""Upstream's two scripts, `train_net.py` and `test_net.py`, with its options `--config_file F [KEY VALUE ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from trireid.cli.console import show_log
from trireid.cli.guard import guarded, rest_idle_threads
from trireid.cli.wording import translated
from trireid.errors import CheckpointError
from trireid.upstream.configuration import UpstreamSettings, load_upstream_yaml
from trireid.upstream.wording import in_upstream_words


def train_from_upstream(arguments: Sequence[str] | None = None) -> None:
    """Train with an upstream configuration.

    Raises:
        SystemExit: 2 after a mistake of the user.
    """
    parser = _parser(
        "train_net.py",
        "Train with an upstream (DeMo) configuration. With trireid's own settings, use: trireid train --config FILE.",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR where it stopped")
    given = parser.parse_args(arguments)
    rest_idle_threads()
    with guarded():
        show_log()
        settings = _settings(given)
        from trireid.cli.train import run

        with translated(in_upstream_words):
            run(
                settings.config,
                resume=given.resume,
                notes=settings.notes,
                resume_with="the same command and --resume after --config_file F",
            )


def evaluate_from_upstream(arguments: Sequence[str] | None = None) -> None:
    """Evaluate the checkpoint of an upstream configuration: TEST.WEIGHT, or the last one of its output folder.

    Raises:
        SystemExit: 2 after a mistake of the user.
    """
    parser = _parser(
        "test_net.py", "Evaluate with an upstream (DeMo) configuration. For a run folder, use: trireid test RUN."
    )
    given = parser.parse_args(arguments)
    rest_idle_threads()
    with guarded():
        show_log()
        settings = _settings(given)
        from trireid.cli.evaluate import run

        with translated(in_upstream_words), guarded():
            run(_weight(settings), settings.config, notes=settings.notes)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--config_file", required=True, type=Path, metavar="F", help="e.g. configs/RGBNT201/DeMo.yml")
    parser.add_argument(
        "--parity", action="store_true", help="train and test as upstream's code does (docs/upstream.md)"
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="settings to change, e.g. SOLVER.MAX_EPOCHS 10, also those of trireid that upstream has no key for",
    )
    return parser


def _settings(given: argparse.Namespace) -> UpstreamSettings:
    return load_upstream_yaml(given.config_file, given.opts, parity=given.parity)


def _weight(settings: UpstreamSettings) -> Path:
    if settings.weight:
        return Path(settings.weight).expanduser()
    if not settings.config.output.is_dir():
        raise CheckpointError(
            f"TEST.WEIGHT is empty and {settings.config.output} holds no run; train first, "
            "or give TEST.WEIGHT path/to/checkpoint.safetensors"
        )
    return settings.config.output
