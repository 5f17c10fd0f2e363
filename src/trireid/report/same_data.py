"""Whether metrics of several runs may be set side by side: the same queries, gallery and rule, of the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trireid.data.records import ImageSource, Record
from trireid.evaluation.ranking import Ranking
from trireid.files import read_bytes
from trireid.report.run_folder import RunFolder
from trireid.report.tables import RULES
from trireid.train.run_files import RunMetrics

NUM_IMAGES = 3
"""Triplets whose files are compared where two runs name other files of the same names."""

COUNTS = {"num_queries": "queries", "num_gallery": "gallery items", "exclude": "the rule of the ranking"}


def differences(runs: Mapping[str, RunFolder]) -> list[str]:
    """How the test data of the runs differ from those of the first, one sentence each; empty if not known to differ.

    Saved features say it exactly. Without them the counts of `metrics.json` do, as far as they go.
    """
    (first, run), *others = runs.items()
    found = []
    for name, other in others:
        if run.saved is not None and other.saved is not None:
            what = _of_features(run.saved, other.saved)
        else:
            what = _of_metrics(run.metrics or {}, other.metrics or {})
        found += [f"{first} and {name} differ in {each}" for each in what]
    return found


def _of_features(one: Ranking, other: Ranking) -> list[str]:
    found = []
    pairs = {
        "queries": (one.query.records, other.query.records),
        "gallery": (one.gallery.records, other.gallery.records),
    }
    for what, (own, others) in pairs.items():
        known = {_who(record) for record in own}
        common = sum(_who(record) in known for record in others)
        if not common == len(own) == len(others):
            found.append(f"their {what} ({len(own)} and {len(others)} items, {common} of them in both)")
    if not found and _other_pixels(one.query.records, other.query.records):
        found.append("their images, which have the same names but other content")
    if one.protocol.exclude != other.protocol.exclude:
        rules = [f"{each.protocol.name}, excluded: {RULES[each.protocol.exclude]}" for each in (one, other)]
        found.append(f"the rule of the ranking ({rules[0]}; {rules[1]})")
    return found


def _who(record: Record) -> tuple[str, str, str | None, str | None]:
    return record.name, record.identity, record.camera, record.scene


def _other_pixels(own: Sequence[Record], others: Sequence[Record]) -> bool:
    """Whether files of the same records differ; those that cannot be read any more tell nothing."""
    by_name = {record.name: record for record in others}
    for record in own[:: max(1, len(own) // NUM_IMAGES)]:
        for source, other in zip(record.images, by_name[record.name].images, strict=True):
            if (source is None) != (other is None):
                return True
            if source is not None and other is not None and source != other and _differ(source, other):
                return True
    return False


def _differ(one: ImageSource, other: ImageSource) -> bool:
    try:
        return one.columns != other.columns or read_bytes(one.path) != read_bytes(other.path)
    except OSError:
        return False


def _of_metrics(one: RunMetrics, other: RunMetrics) -> list[str]:
    values = {what: (one.get(key), other.get(key)) for key, what in COUNTS.items()}
    return [
        f"{what} ({own} and {others})"
        for what, (own, others) in values.items()
        if None not in (own, others) and own != others
    ]
