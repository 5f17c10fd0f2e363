"""The tables of a page: metrics, settings that differ, counts, environment. Plain text in, plain text out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trireid.config.schema import Config
from trireid.evaluation.ranking import Ranking
from trireid.report.values import percent, setting_text
from trireid.train.run_files import RunMetrics, leaves

COLUMNS: dict[str, str] = {"mAP": "mAP", "mINP": "mINP", "rank1": "R1", "rank5": "R5", "rank10": "R10"}
HEADS = {"none": "no head", "hdm": "HDM", "hdm_atmoe": "HDM and ATMoE (DeMo)", "sdtps": "SDTPS"}
RULES = {
    "none": "the item itself",
    "camera": "same identity and camera",
    "scene": "same identity and scene",
    "cross_camera": "same camera",
}


@dataclass(frozen=True)
class MetricGroup:
    """A part of the table of metrics: which weights, and (feature, metrics in percent) line by line."""

    weights: str
    metrics: tuple[tuple[str, tuple[str, ...]], ...]


def metric_groups(metrics: RunMetrics, *, weights: str) -> list[MetricGroup]:
    """The table of metrics: last, best and untrained weights by feature, in percent; `weights` names the last."""
    sources = {weights: metrics.get("feature"), "last, re-ranked": metrics.get("reranked", {}).get("feature")}
    best = metrics.get("best")
    if best is not None:
        sources[f"best (epoch {best['epoch']}, chosen on {best['chosen_on']})"] = best["feature"]
    sources["untrained"] = metrics.get("untrained", {}).get("feature")
    groups = []
    for name, features in sources.items():
        if features:
            lines = [
                (feature, tuple(percent(values.get(key)) for key in COLUMNS)) for feature, values in features.items()
            ]
            groups.append(MetricGroup(name, tuple(lines)))
    return groups


def what_was_trained(config: Config | None, *, imported: bool) -> str:
    """What the title says beside the name of a run: the model, and the data that it was trained on."""
    if config is None:
        return ""
    model = config.model
    text = f"{HEADS[model.head]} on {model.backbone.name}" + (", slimmed" if model.slimming else "")
    return (
        text if imported else f"{text}, trained on {config.data.root.name or config.data.root} ({config.data.format})"
    )


def summary(metrics: RunMetrics, *, weights: str) -> str:
    """The page's first sentence."""
    joint = metrics.get("feature", {}).get("joint")
    if joint is None:
        return "This run has no final metrics yet."
    weights = "the last epoch" if weights == "last" else weights
    text = f"Joint feature of {weights}: mAP {percent(joint.get('mAP'))} %, R1 {percent(joint.get('rank1'))} %"
    untrained = metrics.get("untrained", {}).get("feature", {}).get("joint")
    if untrained is not None:
        text += f"; the same model untrained: mAP {percent(untrained.get('mAP'))} %"
    return text + "."


def warnings(metrics: RunMetrics) -> list[str]:
    """Warnings about the metrics."""
    messages = list(metrics.get("messages", []))
    if metrics.get("best", {}).get("chosen_on") == "test":
        messages.append(
            "The epoch of `best` was chosen on the test set, so its metrics are optimistic; "
            "hold out identities with data.val_ids to choose it fairly."
        )
    return messages


def counts(metrics: RunMetrics, saved: Ranking | None, num_unmatched: int | None) -> dict[str, str]:
    """Items and queries by name, and what the protocol hides."""
    found = {
        "queries": metrics.get("num_queries") if saved is None else len(saved.query.records),
        "queries without a match (left out)": metrics.get("num_unmatched") if num_unmatched is None else num_unmatched,
        "gallery items": metrics.get("num_gallery") if saved is None else len(saved.gallery.records),
    }
    shown = {name: str(value) for name, value in found.items() if value is not None}
    if saved is not None:
        shown["protocol"] = f"{saved.protocol.name} (excluded: {RULES[saved.protocol.exclude]})"
    return shown


def changed_settings(config: Config) -> list[tuple[str, str, str]]:
    """(setting, value of this run, default) of every setting that is not at its default."""
    own, default = settings_table(config), settings_table(Config())
    return [(name, value, default.get(name, "–")) for name, value in own.items() if value != default.get(name)]


def differing_settings(configs: Sequence[Config]) -> list[tuple[str, tuple[str, ...]]]:
    """(setting, value of each run) of every setting in which the runs differ."""
    tables = [settings_table(config) for config in configs]
    rows = [(name, tuple(table.get(name, "–") for table in tables)) for name in tables[0]]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def settings_table(config: Config) -> dict[str, str]:
    """Every setting by its dotted name, as text."""
    return flat(config.model_dump(mode="json"))


def flat(content: Mapping[str, Any]) -> dict[str, str]:
    """A nested mapping as dotted names and texts."""
    return {name: setting_text(value) for name, value in leaves(content)}


def command_line(command: Sequence[str] | None) -> str | None:
    """The command line of a run, given as its words or as text; the program without its folder."""
    if not command:
        return None
    return command if isinstance(command, str) else " ".join([_program(command[0]), shlex.join(command[1:])])


def _program(path: str) -> str:
    """What a user types for a program of this path."""
    name = Path(path).name
    return "python -m trireid" if name == "__main__.py" else name
