"""`trireid train`, `train_net.py` and the demo: one run, and its figures at the end. The run logs its own settings."""

from __future__ import annotations

from collections.abc import Sequence

from trireid.cli.console import is_main_process, note, say, show_figures, show_reranked, show_rule
from trireid.cli.guard import guarded
from trireid.config.schema import Config
from trireid.train.run_files import CONFIG_FILE, STATE_FILE, RunMetrics


def run(
    config: Config,
    *,
    resume: bool = False,
    notes: Sequence[str] = (),
    resume_with: str = "the same command and --resume",
    measure_untrained: bool = False,
    brief: bool = False,
) -> RunMetrics:
    """Train a resolved configuration.

    Args:
        config: the run.
        resume: go on where the run of `config.output` stopped.
        notes: lines to show before it starts.
        resume_with: how to go on after Ctrl-C.
        measure_untrained: evaluate the model before training as well.
        brief: log the settings that differ from the defaults, not all.

    Returns:
        The content of metrics.json; empty on all but the main process.
    """
    for line in notes:
        note(line)
    with guarded(on_interrupt=lambda: _stopped(config, resume_with)):
        from trireid.train.loop import train
        from trireid.visualize.selections import selection_pictures

        metrics = train(
            config,
            resume=resume,
            progress=is_main_process(),
            measure_untrained=measure_untrained,
            brief=brief,
            draw=selection_pictures,
        )
    if metrics:
        show_result(config, metrics)
    return metrics


def _stopped(config: Config, resume_with: str) -> str:
    """What Ctrl-C left, by what lies in the run folder at that moment."""
    state = config.output / STATE_FILE
    if state.exists():
        return f"stopped; the state to resume from is in {state.parent}, go on with {resume_with}"
    if (config.output / CONFIG_FILE).exists():
        every = f"train.checkpoint_every={config.train.checkpoint_every}"
        return f"stopped before a first state was saved ({every}): {resume_with} starts from the first epoch"
    return "stopped before anything was saved: start with the same command again"


def show_result(config: Config, metrics: RunMetrics) -> None:
    """Print the figures of metrics.json and where to look next."""
    show_figures("last checkpoint, test split", metrics["feature"])
    show_rule(metrics)
    show_reranked("last checkpoint, test split", metrics)
    best = metrics.get("best")
    if best:
        title = f"best checkpoint (epoch {best['epoch']}, chosen on the {best['chosen_on']} split), test split"
        show_figures(title, best["feature"])
        if best["chosen_on"] == "test":
            note("`best` was chosen on the test split itself and is no fair figure; data.val_ids=N chooses it apart")
    if metrics.get("num_unmatched"):
        note(f"{metrics['num_unmatched']} of {metrics['num_queries']} queries have no valid match and do not count")
    say(f"run:  {config.output} (metrics.json, last.safetensors, tensorboard/)")
    say(f"next: trireid report {config.output}")
