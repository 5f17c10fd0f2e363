"""The files of a run folder: their names, and the types of what the JSON files hold.

The types are mappings, in memory as in the file. Whoever writes such a file makes one of these; whoever reads one
does so through the adapter of its type, which refuses values of other types and keeps entries that it does not know.
"""

from __future__ import annotations

from typing import Any, Required

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from trireid.typed_json import Count, Number, Share, Text

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
EPOCHS_FILE = "metrics.jsonl"
METRICS_FILE = "metrics.json"
TENSORBOARD_FOLDER = "tensorboard"
STATE_FILE = "state/state.pt"

STRICT = ConfigDict(extra="allow", strict=True)

Figures = dict[str, dict[str, Share]]
"""By feature: `{"joint": {"mAP": ..., "rank1": ...}}`, each in [0, 1]."""


class FeatureMetrics(TypedDict, total=False):
    """Figures of some weights on the test split."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    feature: Required[Figures]


class RerankedMetrics(FeatureMetrics, total=False):
    """Figures after k-reciprocal re-ranking, and its settings."""

    k1: Required[Count]
    k2: Required[Count]
    lambda_value: Required[Share]


class BestMetrics(FeatureMetrics, total=False):
    """Figures of `best` on the test split; those of the split that chose it may stand beside them, under its name.

    Attributes:
        epoch: that it was saved after.
        chosen_on: the split.
        chosen_by: feature and metric.
    """

    epoch: Required[Count]
    chosen_on: Required[Text]
    chosen_by: Text


class RunMetrics(TypedDict, total=False):
    """The content of `metrics.json`: what a finished run found. Figures are in [0, 1].

    Attributes:
        feature: of `last` on the test split.
        num_queries, num_gallery: items of each set.
        num_unmatched: queries without any valid match, left out of the means.
        messages: what the reader of the figures must know, one line each.
        reranked: of `last` after re-ranking, where that was on.
        data: root of the data set.
        protocol: its name.
        exclude: the rule of the ranking.
        num_left_out: faulty items of the data set.
        epoch: the last one.
        best: of the checkpoint that was chosen.
        untrained: of the same model before training, where that was measured.
        num_train, num_train_identities: what was trained on.
        seed: `train.seed`.
        train_seconds: of all epochs.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    feature: Figures
    num_queries: Count
    num_gallery: Count
    num_unmatched: Count
    messages: list[Text]
    reranked: RerankedMetrics
    data: Text
    protocol: Text
    exclude: Text
    num_left_out: Count
    epoch: Count
    best: BestMetrics
    untrained: FeatureMetrics
    num_train: Count
    num_train_identities: Count
    seed: int
    train_seconds: Number


class EpochEntry(TypedDict, total=False):
    """A line of `metrics.jsonl`: what one epoch left.

    Attributes:
        epoch: from 1.
        loss: mean of each term.
        lr: learning rate of each group.
        metrics: figures by split, where it was evaluated.
        seconds: of the whole epoch.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    epoch: Required[Count]
    loss: dict[str, Number]
    lr: dict[str, Number]
    metrics: dict[str, Figures]
    seconds: Number


class Environment(TypedDict, total=False):
    """The content of `environment.json`: what a run ran on; versions and devices stand beside these as they are.

    Attributes:
        command: its command line, as words.
        resumed: the same of each time that it was resumed.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    command: list[Text] | Text
    resumed: list[dict[str, Any]]


class ImportedFile(TypedDict, total=False):
    """The report that `trireid import` writes beside the checkpoint that it makes.

    Attributes:
        used, ignored: keys of the file.
        notes: what to know of them, one line each.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    used: dict[str, Any] | list[Any]
    ignored: dict[str, Any] | list[Any]
    notes: list[Text]


RUN_METRICS = TypeAdapter(RunMetrics)
EPOCH_ENTRY = TypeAdapter(EpochEntry)
ENVIRONMENT = TypeAdapter(Environment)
IMPORTED_FILE = TypeAdapter(ImportedFile)
