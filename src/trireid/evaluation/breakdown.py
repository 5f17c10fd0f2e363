"""Metrics by a column of the queries, such as their scene: where a mean over all of them comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from trireid.data.records import Record
from trireid.errors import InputError, printable
from trireid.evaluation.metrics import RankMetrics

COLUMNS = ("identity", "camera", "scene")
"""What may be known of an item of any data set, besides its images; a table may have further columns."""
NOT_KNOWN = "not known"
"""Stands for the value of items whose camera or scene is not known."""
_LONGEST = 1000


class GroupMetrics(TypedDict):
    """Metrics of the queries that have one value of a column.

    Attributes:
        num_queries: how many they are.
        num_unmatched: those among them without a valid match, which every mean leaves out.
        feature: metrics by feature in [0, 1]; empty where no query of the group has a match.
    """

    num_queries: int
    num_unmatched: int
    feature: dict[str, dict[str, float]]


Breakdown = dict[str, dict[str, GroupMetrics]]
"""By column and value: `{"scene": {"12": {...}}}`, values in sorted order."""


def known_columns(records: Sequence[Record]) -> list[str]:
    """The columns that at least one item has a value of."""
    others = sorted({name for record in records for name, _ in record.columns})
    return [name for name in COLUMNS if any(getattr(record, name) is not None for record in records)] + others


def check_columns(records: Sequence[Record], columns: Sequence[str]) -> None:
    """Raise InputError unless every column is known for some of the queries.

    Args:
        records: of the queries.
        columns: to break metrics down by.
    """
    known = known_columns(records)
    for name in columns:
        if name not in known:
            raise _no_column(name, known)


def _no_column(name: str, known: Sequence[str]) -> InputError:
    return InputError(
        f"metrics by '{printable(name, limit=60)}': the queries have no such column; choose among {', '.join(known)}"
    )


def break_down(rankings: Mapping[str, RankMetrics], records: Sequence[Record], columns: Sequence[str]) -> Breakdown:
    """Metrics of the queries by each value of some columns; every query still ranks the whole gallery.

    Args:
        rankings: metrics of all queries by feature, such as `EvaluationResult.rankings`.
        records: of the queries, in the same order.
        columns: `identity`, `camera`, `scene`, or a further column that the records have.

    Raises:
        InputError: the records do not fit the rankings, or there is no such column.

    Example:
        >>> from trireid.evaluation.metrics import rank_metrics
        >>> from trireid.types import Labels, Protocol
        >>> identity, unknown = torch.tensor([0, 0, 1, 1]), torch.full((4,), -1)
        >>> labels = Labels(identity, unknown, unknown, item=torch.arange(4))
        >>> distance = torch.tensor([[0.0, 1, 2, 3], [1, 0, 2, 3], [1, 2, 0, 3], [1, 2, 3, 0]])
        >>> ranked = rank_metrics(distance, labels, labels, Protocol("any", "none"))
        >>> records = [Record(name, (), identity=name, scene=scene) for name, scene in ["a1", "a1", "b2", "b2"]]
        >>> found = break_down({"joint": ranked}, records, ["scene"])["scene"]
        >>> {scene: round(group["feature"]["joint"]["mAP"], 2) for scene, group in found.items()}
        {'1': 1.0, '2': 0.33}
    """
    known = [*dict.fromkeys((*COLUMNS, *known_columns(records)))]
    unknown = next((name for name in columns if name not in known), None)
    if unknown is not None:
        raise _no_column(unknown, known)
    for name, each in rankings.items():
        if len(records) != each.num_queries:
            raise InputError(
                f"{len(records)} records for the {each.num_queries} queries ranked by {name}: give one each"
            )
    return {column: _groups(rankings, [_value(record, column) for record in records]) for column in columns}


def _groups(rankings: Mapping[str, RankMetrics], values: Sequence[str]) -> dict[str, GroupMetrics]:
    groups: dict[str, GroupMetrics] = {}
    for value in sorted(set(values), key=_order):
        rows = torch.tensor([each == value for each in values])  # (Q,)
        unmatched = next(iter(rankings.values())).average_precision[rows].isnan()
        groups[value] = {
            "num_queries": len(unmatched),
            "num_unmatched": int(unmatched.sum()),
            "feature": {}
            if bool(unmatched.all())
            else {name: each.of_queries(rows).as_dict() for name, each in rankings.items()},
        }
    return groups


def _order(value: str) -> tuple[int, str]:
    """Numbers by their size before all other names."""
    return (len(value), value) if value.isdigit() else (_LONGEST, value)


def _value(record: Record, column: str) -> str:
    value: str | None = getattr(record, column) if column in COLUMNS else dict(record.columns).get(column)
    return NOT_KNOWN if value is None else value
