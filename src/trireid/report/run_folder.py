"""What a run left in its folder, read for the page. A part that is missing or damaged is a note, not an end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trireid.errors import RunError
from trireid.evaluation.saved import FEATURES_FILE, RECORDS_FILE, SavedFeatures, load_features


@dataclass(frozen=True)
class RunFolder:
    """The parts of a run folder.

    Attributes:
        path: the folder.
        config: text of `config.yaml`, None where there is none (as for all that follow).
        environment: content of `environment.json`.
        metrics: content of `metrics.json`.
        history: lines of `metrics.jsonl`, one an epoch; empty where there is none.
        saved: test features and records.
        notes: one line for each part that is missing or damaged.
    """

    path: Path
    config: str | None
    environment: dict[str, Any] | None
    metrics: dict[str, Any] | None
    history: list[dict[str, Any]]
    saved: SavedFeatures | None
    notes: tuple[str, ...]


def read_run(path: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        RunError: there is no such folder, or nothing of a run is in it.
    """
    if not path.is_dir():
        raise RunError(f"{path} is not a folder; give the run folder that `trireid train` wrote")
    notes: list[str] = []
    config = _read_text(path / "config.yaml", notes)
    environment = _read_mapping(path / "environment.json", notes)
    metrics = _read_mapping(path / "metrics.json", notes)
    history = _read_lines(path / "metrics.jsonl", notes)
    saved = _read_features(path, notes)
    if config is None and metrics is None and saved is None and not history:
        raise RunError(f"{path} holds no run ({'; '.join(notes)}); give the folder that `trireid train` wrote")
    return RunFolder(path, config, environment, metrics, history, saved, tuple(notes))


def _read_text(path: Path, notes: list[str]) -> str | None:
    """The text of a file, or None and a note."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        notes.append(f"{path.name} is not there")
    except (OSError, UnicodeDecodeError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
    return None


def _parse_mapping(text: str, name: str, notes: list[str]) -> dict[str, Any] | None:
    """A JSON object, or None and a note."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        notes.append(f"{name} is damaged: {error}")
        return None
    if not isinstance(content, dict):
        notes.append(f"{name} is damaged: it holds no JSON object")
        return None
    return content


def _read_mapping(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """The JSON object of a file, or None and a note."""
    text = _read_text(path, notes)
    return None if text is None else _parse_mapping(text, path.name, notes)


def _read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The JSON objects of a file's lines; a damaged line (an interrupted run) is left out with a note."""
    text = _read_text(path, notes)
    lines = [] if text is None else text.splitlines()
    parsed = [
        _parse_mapping(line, f"{path.name} line {number}", notes)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return [line for line in parsed if line is not None]


def _read_features(path: Path, notes: list[str]) -> SavedFeatures | None:
    """The saved features, or None and a note."""
    if not (path / FEATURES_FILE).exists() and not (path / RECORDS_FILE).exists():
        notes.append(f"{FEATURES_FILE} and {RECORDS_FILE} are not there: no rank lists and no CMC curve")
        return None
    try:
        return load_features(path)
    except RunError as error:
        notes.append(str(error))
        return None
