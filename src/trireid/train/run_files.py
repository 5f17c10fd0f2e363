"""The files of a run folder: their names, and the types of what the JSON files hold.

The types are mappings, in memory as in the file. Whoever writes such a file makes one of these; whoever reads one
does so through the adapter of its type, which refuses values of other types and keeps entries that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Required

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from trireid.evaluation.breakdown import Breakdown
from trireid.files import CALIBRATION_FILE as CALIBRATION_FILE
from trireid.files import FEATURES_FILE as FEATURES_FILE
from trireid.files import LAST_FILE as LAST_FILE
from trireid.files import RECORDS_FILE as RECORDS_FILE
from trireid.typed_json import Count, JsonObject, Number, Share, Text

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
EPOCHS_FILE = "metrics.jsonl"
METRICS_FILE = "metrics.json"
BEST_FILE = "best.safetensors"
TENSORBOARD_FOLDER = "tensorboard"
STATE_FILE = "state/state.pt"
PAGE_FILE = "report.html"
PICTURES_FOLDER = "pictures"
OTHER_OUTPUT = "choose another folder with output=..."
"""What can be done where the folder of a run cannot be written, see `files.writing`."""
IMPORT_REPORT_SUFFIX = ".report.json"
"""In place of the ending of an imported checkpoint's name."""

STRICT = ConfigDict(extra="allow", strict=True)

Figures = dict[str, dict[str, Share]]
"""By feature: `{"joint": {"mAP": ..., "rank1": ...}}`, each in [0, 1]."""


class FeatureMetrics(TypedDict, total=False):
    """Figures of some weights on the test split."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    feature: Required[Figures]


class VerificationMetrics(TypedDict, total=False):
    """False non-match rates (FNMR) on the test split at fixed false match rates, see `evaluation.verification`.

    Attributes:
        feature: by feature, `fnmr_at_fmr_1e-2` and `fnmr_at_fmr_1e-3` in [0, 1], where the identities suffice.
        num_identity_pairs: pairs of different identities.
        note: why a rate is not there; empty if none is missing.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    feature: Required[Figures]
    num_identity_pairs: Count
    note: Text


class RerankedMetrics(FeatureMetrics, total=False):
    """Figures after k-reciprocal re-ranking, and its settings; `by` where a test broke them down by columns."""

    k1: Required[Count]
    k2: Required[Count]
    lambda_value: Required[Share]
    by: Breakdown


class BestMetrics(FeatureMetrics, total=False):
    """Metrics of `best` on the test split.

    Attributes:
        epoch: the epoch after which it was saved.
        chosen_on: the split that chose it, `test` or `validation`.
        chosen_by: feature and metric.
        validation: its metrics on the validation split, where that chose it.
    """

    epoch: Required[Count]
    chosen_on: Required[Text]
    chosen_by: Text
    validation: Figures


class EvaluationMetrics(TypedDict, total=False):
    """What one evaluation found on the test split. Metrics are in [0, 1].

    Attributes:
        feature: metrics by feature.
        num_queries, num_gallery: items of each set.
        num_unmatched: queries without any valid match, excluded from the means.
        rule: what the protocol hid, see `AppliedRule`.
        messages: what a reader of the metrics must know, one line each.
        verification: false non-match rates at fixed false match rates.
        reranked: the same after re-ranking, where that was on.
        data: root of the data set.
        protocol: its name.
        exclude: which gallery items a query must not see.
        num_left_out: faulty items of the data set.
        data_notes: notes on the data set, one line each.
        epoch: the epoch after which the weights were saved.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    feature: Figures
    num_queries: Count
    num_gallery: Count
    num_unmatched: Count
    rule: JsonObject
    messages: list[Text]
    verification: VerificationMetrics
    reranked: RerankedMetrics
    data: Text
    protocol: Text
    exclude: Text
    num_left_out: Count
    data_notes: list[Text]
    epoch: Count


class RunMetrics(EvaluationMetrics, total=False):
    """The content of `metrics.json`: the evaluation of `last` on the test split, and what a finished run adds to it.

    Attributes:
        best: of the checkpoint that was chosen.
        untrained: of the same model before training, where that was measured.
        num_train, num_train_identities: triplets and identities of the training set.
        seed: `train.seed`.
        train_seconds: duration of all epochs.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    best: BestMetrics
    untrained: FeatureMetrics
    num_train: Count
    num_train_identities: Count
    seed: int
    train_seconds: Number


SubsetMetrics = dict[str, dict[str, float | None]]
"""Metrics by feature of a subset of the modalities; None where it has none."""


class MissingCase(TypedDict, total=False):
    """One case of withheld modalities; `by` where metrics by columns of the queries were requested."""

    num_queries: Required[int]
    num_gallery: Required[int]
    num_unmatched: Required[int]
    feature: Required[SubsetMetrics]
    by: Breakdown


class MissingTable(TypedDict):
    """Metrics with modalities withheld, the same in query and gallery.

    Attributes:
        missing_as: `evaluate.missing_as`.
        cases: by the first letters of the withheld modalities, `none` for the complete case.
        mean: over all cases but the complete one that have a value.
        num_cases: how many cases the mean of each feature is over.
        rules: what the protocol hid in each case, see `AppliedRule`.
        notes: what a reader must know about single cases.
    """

    missing_as: str
    cases: dict[str, MissingCase]
    mean: SubsetMetrics
    num_cases: dict[str, int]
    rules: dict[str, JsonObject]
    notes: list[str]


class AnyToAnyTable(TypedDict):
    """Metrics of every subset of the modalities as query against every subset as gallery.

    Attributes:
        missing_as: `evaluate.missing_as`.
        subsets: names, in the order of all rows and columns.
        num_queries, num_gallery: items of each subset.
        num_unmatched: queries without a valid match; one row per subset of the queries.
        feature: `{name: {"mAP" | "rank1": rows}}`, one row per subset of the queries; None where there is no value.
        notes: what a reader must know about single pairs of subsets.
    """

    missing_as: str
    subsets: list[str]
    num_queries: list[int]
    num_gallery: list[int]
    num_unmatched: list[list[int]]
    feature: dict[str, dict[str, list[list[float | None]]]]
    notes: list[str]


class SubsetTables(TypedDict, total=False):
    """The tables over withheld modalities that were requested."""

    missing: MissingTable
    any_to_any: AnyToAnyTable


class CheckpointMetrics(EvaluationMetrics, SubsetTables, total=False):
    """What `trireid test` finds: the evaluation of one checkpoint, with the tables that were requested.

    Attributes:
        checkpoint: path of the file.
        note: why it was saved, such as `best on validation`.
        by: metrics by the columns of the queries that were requested.
    """

    checkpoint: str
    note: str
    by: Breakdown


class EpochEntry(TypedDict, total=False):
    """A line of `metrics.jsonl`: one epoch.

    Attributes:
        epoch: counted from 1.
        loss: mean of each term.
        lr: learning rate of each parameter group.
        metrics: metrics by split, where the epoch was evaluated.
        seconds: time of the whole epoch.
        num_steps: number of batches.
        num_triplets: triplets seen by all processes.
        data_seconds: time spent waiting for batches.
        step_seconds: all other time of the steps; work of the device is counted in the step that waits for it.
        evaluation_seconds: time of the evaluation.
        selection: statistics of the selection by stage, where they were measured.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    epoch: Required[Count]
    loss: dict[str, Number]
    lr: dict[str, Number]
    metrics: dict[str, Figures]
    seconds: Number
    num_steps: Count
    num_triplets: Count
    data_seconds: Number
    step_seconds: Number
    evaluation_seconds: Number
    selection: dict[str, dict[str, Number]]


class Environment(TypedDict, total=False):
    """The content of `environment.json`: what a run ran on; versions and devices stand beside these as they are.

    Attributes:
        command: its command line, as words.
        resumed: the same of each time that it was resumed.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    command: list[Text] | Text
    resumed: list[JsonObject]


class ImportedFile(TypedDict, total=False):
    """The report that `trireid import` writes beside the checkpoint that it makes.

    Attributes:
        used, ignored: keys of the file.
        notes: what to know of them, one line each.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    used: JsonObject | list[Any]
    ignored: JsonObject | list[Any]
    notes: list[Text]


RUN_METRICS = TypeAdapter(RunMetrics)
EPOCH_ENTRY = TypeAdapter(EpochEntry)
ENVIRONMENT = TypeAdapter(Environment)
IMPORTED_FILE = TypeAdapter(ImportedFile)


def leaves(tree: Mapping[str, Any], *, separator: str = ".") -> Iterator[tuple[str, Any]]:
    """Every value of a nested mapping under its path, the names of the levels joined by a separator.

    Example:
        >>> dict(leaves({"loss": {"total": 1.5}, "epoch": 3}))
        {'loss.total': 1.5, 'epoch': 3}
    """
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}{separator}{path}", leaf) for path, leaf in leaves(value, separator=separator))
        else:
            yield name, value
