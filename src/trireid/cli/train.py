"""`trireid train`, `train_net.py` and the demo: one run, and its metrics at the end. The run logs its own settings."""

from __future__ import annotations

from collections.abc import Sequence

from trireid.cli.console import is_main_process, note, say, show_metrics, show_reranked, show_rule
from trireid.cli.guard import guarded
from trireid.config.schema import Config
from trireid.train.run_files import CONFIG_FILE, LAST_FILE, METRICS_FILE, STATE_FILE, TENSORBOARD_FOLDER, RunMetrics


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
        resume: continue the run in `config.output` where it stopped.
        notes: lines to show before it starts.
        resume_with: how to continue after Ctrl-C.
        measure_untrained: also evaluate the model before training.
        brief: log only the settings that differ from the defaults.

    Returns:
        The content of metrics.json; empty on all processes but the main one.
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
    """What the run folder holds after Ctrl-C, and how to continue."""
    state = config.output / STATE_FILE
    if state.exists():
        return f"stopped; the state to resume from is in {state.parent}: continue with {resume_with}"
    if (config.output / CONFIG_FILE).exists():
        every = f"train.checkpoint_every={config.train.checkpoint_every}"
        return f"stopped before the first state was saved ({every}): {resume_with} starts from the first epoch"
    return "stopped before anything was saved: start with the same command again"


def show_result(config: Config, metrics: RunMetrics) -> None:
    """Print the content of metrics.json and the next command."""
    show_metrics("last checkpoint, test split", metrics["feature"])
    show_rule(metrics)
    show_reranked("last checkpoint, test split", metrics)
    best = metrics.get("best")
    if best:
        title = f"best checkpoint (epoch {best['epoch']}, chosen on the {best['chosen_on']} split), test split"
        show_metrics(title, best["feature"])
        if best["chosen_on"] == "test":
            note(
                "the metrics of `best` are biased: its epoch was chosen on the test split; with data.val_ids=N it is "
                "chosen on a validation split"
            )
    if metrics.get("num_unmatched"):
        note(f"{metrics['num_unmatched']} of {metrics['num_queries']} queries have no match and are excluded")
    say(f"run:  {config.output} ({METRICS_FILE}, {LAST_FILE}, {TENSORBOARD_FOLDER}/)")
    say(f"next: trireid report {config.output}")
