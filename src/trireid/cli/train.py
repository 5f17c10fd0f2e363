"""`trireid train` and `train_net.py`: one run, its settings said once, its figures at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trireid.cli.console import is_main_process, note, say, show_figures
from trireid.cli.guard import guarded
from trireid.config.load import dump_config
from trireid.config.schema import Config


def run(config: Config, *, resume: bool = False, notes: Sequence[str] = (), command: str = "") -> dict[str, Any]:
    """Train a resolved configuration.

    Args:
        config: the run.
        resume: go on where the run of `config.output` stopped.
        notes: lines to show beside the settings.
        command: how to go on after Ctrl-C; "" for the same `trireid train` with --resume.

    Returns:
        The content of metrics.json.
    """
    show_settings(config, notes)
    again = command or "the same command and --resume"
    with guarded(on_interrupt=f"stopped; the state to resume from is in {config.output / 'state'}, go on with {again}"):
        from trireid.train.loop import train

        metrics = train(config, resume=resume, progress=is_main_process())
    show_result(config, metrics)
    return metrics


def show_settings(config: Config, notes: Sequence[str] = ()) -> None:
    """Print all settings as YAML, and what should be known about them."""
    say(dump_config(config).rstrip())
    for line in notes:
        note(line)


def show_result(config: Config, metrics: Mapping[str, Any]) -> None:
    """Print the figures of metrics.json and where to look next."""
    show_figures("last checkpoint, test split", metrics.get("feature", {}))
    best = metrics.get("best")
    if best:
        title = f"best checkpoint (epoch {best['epoch']}, chosen on the {best['chosen_on']} split), test split"
        show_figures(title, best.get("feature", {}))
        if best["chosen_on"] == "test":
            note("`best` was chosen on the test split itself and is no fair figure; data.val_ids=N chooses it apart")
    if metrics.get("num_unmatched"):
        note(f"{metrics['num_unmatched']} of {metrics.get('num_queries')} queries have no valid match and do not count")
    say(f"run: {config.output}  (metrics.json, last.safetensors, tensorboard/)")
    say(f"next: trireid report {config.output}")
