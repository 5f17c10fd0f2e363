"""What a run left in its folder, or a checkpoint alone, read for pages and pictures. What is missing is a note."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from trireid.config.load import dump_config, override_config, validate
from trireid.config.read import parse_yaml
from trireid.config.schema import Config
from trireid.data.records import Record
from trireid.embedding.identity import fingerprint
from trireid.errors import CheckpointError, ConfigError, RunError
from trireid.evaluation.calibration import Calibration
from trireid.evaluation.feature_files import load_features
from trireid.evaluation.ranking import Ranking, Side
from trireid.files import FEATURES_FILE, RECORDS_FILE, read_text, real_path
from trireid.train.checkpoint import config_here, load_checkpoint
from trireid.train.inputs import scan_index
from trireid.train.run_files import (
    BEST_FILE,
    CALIBRATION_FILE,
    CONFIG_FILE,
    ENVIRONMENT,
    ENVIRONMENT_FILE,
    EPOCH_ENTRY,
    EPOCHS_FILE,
    IMPORT_REPORT_SUFFIX,
    IMPORTED_FILE,
    LAST_FILE,
    METRICS_FILE,
    PAGE_FILE,
    PICTURES_FOLDER,
    RUN_METRICS,
    Environment,
    EpochEntry,
    ImportedFile,
    RunMetrics,
)
from trireid.train.testing import checkpoint_features
from trireid.typed_json import parse_object, without_faults

MAX_NOTES = 3
"""Damaged lines of a file that are named one by one."""

Content = TypeVar("Content")


@dataclass(frozen=True)
class RunFolder:
    """The parts of a run folder, or of a checkpoint file that stands alone.

    Attributes:
        path: the folder or file.
        config: text of `config.yaml`, None where there is none (as for all that follow).
        environment: content of `environment.json`.
        metrics: content of `metrics.json`.
        history: lines of `metrics.jsonl`, one an epoch; empty where there is none.
        saved: test features and records.
        notes: one line for each part that is missing or damaged.
        weights: which weights the metrics are of, for the table.
        imported: content of the report that `trireid import` wrote beside the file.
        overrides: settings to change before anything is read again, such as a moved `data.root`.
        calibration: content of `calibration.json`.
    """

    path: Path
    config: str | None
    environment: Environment | None
    metrics: RunMetrics | None
    history: list[EpochEntry]
    saved: Ranking | None
    notes: tuple[str, ...]
    weights: str = "last"
    imported: ImportedFile | None = None
    overrides: tuple[str, ...] = ()
    calibration: Calibration | None = None

    @property
    def name(self) -> str:
        """The name of the folder, or of the file without its ending."""
        path = real_path(self.path)
        return path.name if self.path.is_dir() else path.stem

    @property
    def page(self) -> Path:
        """Where its page goes: into the folder, or beside the file."""
        return self.path / PAGE_FILE if self.path.is_dir() else self.path.with_suffix(".html")

    @property
    def pictures(self) -> Path:
        """Where its pictures go unless another folder is given."""
        return (
            self.path / PICTURES_FOLDER
            if self.path.is_dir()
            else self.path.with_name(f"{self.path.stem}_{PICTURES_FOLDER}")
        )


def read_run(path: Path, *, overrides: Sequence[str] = (), evaluate: bool = False, progress: bool = False) -> RunFolder:
    """Read a run folder or a checkpoint file.

    Args:
        path: a run folder, or a checkpoint (.safetensors) such as `trireid import` writes.
        overrides: `section.setting=value`; with `data.root` images are looked for there.
        evaluate: run the model over the test set where no features are saved.
        progress: show a bar meanwhile.

    Raises:
        RunError: there is no such folder or file, or nothing of a run is in it.
        TrireidError: an override is wrong, or the evaluation that was asked for cannot be made.
    """
    run = _read_folder(path) if path.is_dir() else _read_file(path)
    run = replace(run, overrides=tuple(overrides))
    if run.saved is not None and any(override.partition("=")[0].strip() == "data.root" for override in overrides):
        run = replace(run, saved=_with_images_of(run.saved, _settings(run)))
    if evaluate and run.saved is None:
        notes = tuple(note for note in run.notes if FEATURES_FILE not in note)
        run = replace(run, saved=checkpoint_features(path, config=_settings(run), progress=progress), notes=notes)
    return run


def evaluated_records(run: RunFolder) -> tuple[Record, ...]:
    """The queries of a run: those of its saved features, else those of its data set.

    Raises:
        TrireidError: neither is there.
    """
    if run.saved is not None:
        return run.saved.query.records
    return scan_index(_settings(run)).query


def saved_features_of(run: RunFolder) -> Ranking:
    """The saved features of a run.

    Raises:
        RunError: there are none, or they are damaged.
    """
    if run.saved is None:
        damaged = next((f" ({note})" for note in run.notes if FEATURES_FILE in note and "damaged" in note), "")
        raise RunError(
            f"{run.path} has no saved features to draw{damaged}: --evaluate makes them now, with data.root=... where "
            "the images were moved"
        )
    return run.saved


def _settings(run: RunFolder) -> Config:
    """The settings of a run's last checkpoint, changed as asked."""
    return override_config(config_here(load_checkpoint(run.path)), run.overrides)


def _read_folder(path: Path) -> RunFolder:
    notes: list[str] = []
    config = _read_text(path / CONFIG_FILE, notes)
    environment = _read_part(path / ENVIRONMENT_FILE, ENVIRONMENT, notes)
    metrics = _read_part(path / METRICS_FILE, RUN_METRICS, notes)
    history = _read_history(path / EPOCHS_FILE, notes)
    saved = _read_features(path, notes)
    if config is None and metrics is None and saved is None and not history and not (path / LAST_FILE).exists():
        raise RunError(f"{path} holds no run ({'; '.join(notes)}); give the folder that `trireid train` wrote")
    calibration = _read_calibration(path, notes)
    return RunFolder(path, config, environment, metrics, history, saved, tuple(notes), calibration=calibration)


def _read_calibration(folder: Path, notes: list[str]) -> Calibration | None:
    """The calibration of a run; None, with a note, where it is damaged or of other weights; most runs have none."""
    path = folder / CALIBRATION_FILE
    try:
        calibration = Calibration.load(path) if path.exists() else None
    except RunError as error:
        notes.append(str(error))
        return None
    if calibration is not None and not _is_of_weights(calibration, folder):
        notes.append(
            f"{CALIBRATION_FILE} is left out: it was made by other weights, or other value ranges, than those of this "
            "run; make it again with `trireid calibrate`"
        )
        return None
    return calibration


def _is_of_weights(calibration: Calibration, folder: Path) -> bool:
    """Whether the last or the best weights made a calibration; also where a folder has no weights to compare with."""
    try:
        fingerprints = [
            fingerprint(load_checkpoint(folder / name)) for name in (LAST_FILE, BEST_FILE) if (folder / name).exists()
        ]
    except CheckpointError:
        return True  # those who load the weights are told
    return not fingerprints or calibration.fingerprint in fingerprints


def _read_file(path: Path) -> RunFolder:
    if not path.exists():
        raise RunError(
            f"{path} is not a folder and not a file; give the run folder that `trireid train` wrote, or a checkpoint"
        )
    checkpoint = load_checkpoint(path)
    notes = [
        f"a checkpoint alone has no history, metrics or environment, and no {FEATURES_FILE}: no rank lists and no "
        "curves; evaluate it with --evaluate data.root=..."
    ]
    report = path.with_suffix(IMPORT_REPORT_SUFFIX)
    imported = _read_part(report, IMPORTED_FILE, notes) if report.exists() else None
    # Its own metrics, where it has some, are of the split that chose it and not of the test.
    return RunFolder(
        path,
        config=dump_config(checkpoint.config),
        environment=None,
        metrics=None,
        history=[],
        saved=None,
        notes=tuple(notes),
        weights=f"epoch {checkpoint.epoch}" + (f", {checkpoint.note}" if checkpoint.note else ""),
        imported=imported,
    )


def parse_config(text: str | None, notes: list[str]) -> Config | None:
    """The settings of a `config.yaml`, or None and a note."""
    if text is None:
        return None
    try:
        content = parse_yaml(text, source=CONFIG_FILE)
        return validate(content) if isinstance(content, dict) else None
    except ConfigError as error:
        notes.append(f"config.yaml holds settings that this version does not know, shown as they are: {error}")
        return None


def _with_images_of(saved: Ranking, config: Config) -> Ranking:
    """Saved features whose records read the images of a data set that was moved, by the names of the records.

    Raises:
        TrireidError: the data set cannot be read.
    """
    index = scan_index(config)

    def moved(side: Side, records: Sequence[Record]) -> Side:
        images = {record.name: record.images for record in records}
        return replace(
            side,
            records=tuple(replace(record, images=images.get(record.name, record.images)) for record in side.records),
        )

    query = moved(saved.query, index.query)
    gallery = query if saved.query_is_gallery else moved(saved.gallery, index.gallery)
    return replace(saved, query=query, gallery=gallery)


def _read_text(path: Path, notes: list[str]) -> str | None:
    """The text of a file, or None and a note."""
    try:
        return read_text(path)
    except FileNotFoundError:
        notes.append(f"{path.name} is not there")
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        notes.append(f"{path.name} cannot be read: {error}")
    return None


def _read_part(path: Path, kind: TypeAdapter[Content], notes: list[str]) -> Content | None:
    """What can be used of a file's JSON object, with a note on the rest; None and a note where that is nothing."""
    text = _read_text(path, notes)
    if text is None:
        return None
    try:
        content, faults = without_faults(kind, parse_object(text))
    except ValueError as error:
        notes.append(f"{path.name} is damaged: {error}")
        return None
    notes += [f"{path.name} is damaged, a part of it is left out: {fault}" for fault in faults]
    return content


def _read_history(path: Path, notes: list[str]) -> list[EpochEntry]:
    """The epochs of a file's lines; a damaged line (of an interrupted run) is left out with a note."""
    text = _read_text(path, notes)
    entries, damaged = [], []
    for number, line in enumerate([] if text is None else text.split("\n"), start=1):
        if line.strip():
            try:
                entry, faults = without_faults(EPOCH_ENTRY, parse_object(line))
            except ValueError as error:
                damaged.append(f"{path.name} line {number} is damaged and left out: {error}")
            else:
                entries.append(entry)
                damaged += [f"{path.name} line {number} is damaged, a part is left out: {fault}" for fault in faults]
    notes += damaged[:MAX_NOTES]
    if len(damaged) > MAX_NOTES:
        notes.append(f"{path.name} has {len(damaged) - MAX_NOTES} more damaged lines")
    return entries


def _read_features(path: Path, notes: list[str]) -> Ranking | None:
    """The saved features, or None and a note."""
    if not (path / FEATURES_FILE).exists() and not (path / RECORDS_FILE).exists():
        notes.append(
            f"{FEATURES_FILE} and {RECORDS_FILE} are not there: no rank lists and no CMC curve; --evaluate makes them"
        )
        return None
    try:
        return load_features(path)
    except RunError as error:
        notes.append(str(error))
        return None
