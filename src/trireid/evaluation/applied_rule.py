"""What a protocol hid in one ranking: counts and one line of text, so that a reader knows which rule was applied."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trireid.data.consistency import describe_unknown
from trireid.evaluation.nearest import row_slices
from trireid.evaluation.protocols import ROWS, bearers, equal_known, ranking_masks, take
from trireid.types import EXCLUSION_FIELD, UNKNOWN, Exclusion, Labels, Protocol

_HIDDEN: dict[Exclusion, str] = {
    "camera": "pairs of the same identity and camera",
    "scene": "pairs of the same identity and scene",
    "cross_camera": "pairs of the same camera",
    "none": "pairs",
}
"""What each rule hides, besides the item itself."""


@dataclass(frozen=True)
class AppliedRule:
    """Counts of a ranking's pairs of query and gallery item.

    Attributes:
        exclude: the rule of the protocol.
        num_pairs: all pairs.
        num_hidden_itself: hidden because both are the same item.
        num_hidden_by_rule: hidden by the rule, besides these.
        num_queries, num_unmatched: all queries, and those without a match.
    """

    exclude: Exclusion
    num_pairs: int
    num_hidden_itself: int
    num_hidden_by_rule: int
    num_queries: int
    num_unmatched: int

    @property
    def text(self) -> str:
        """The counts in one line."""
        return (
            f"rule {self.exclude}: hid {self.num_hidden_by_rule:,} {_HIDDEN[self.exclude]} and "
            f"{self.num_hidden_itself:,} of an item with itself, of {self.num_pairs:,}; "
            f"{self.num_unmatched:,} of {self.num_queries:,} queries without a match"
        )

    def as_dict(self) -> dict[str, Any]:
        """The counts and the line as content for JSON."""
        return {**asdict(self), "text": self.text}


def applied_rule(query: Labels, gallery: Labels, protocol: Protocol, *, num_unmatched: int) -> AppliedRule:
    """Count what a protocol hides between labels `(Q,)` and `(G,)`; either side may be empty.

    Only pairs with an equal code (identity, camera) are compared.
    """
    if not len(query) or not len(gallery):
        return AppliedRule(protocol.exclude, 0, 0, 0, len(query), num_unmatched)
    code = "camera" if protocol.exclude == "cross_camera" else "identity"
    relatives = bearers(getattr(query, code), getattr(gallery, code))
    by_rule = 0
    for rows in row_slices(len(query), ROWS):
        items, is_real = relatives.of(rows)
        some, others = take(query, rows), take(gallery, items)
        _, hidden = ranking_masks(some, others, protocol)
        by_rule += int((hidden & is_real & ~equal_known(some.item, others.item)).sum())
    return AppliedRule(
        exclude=protocol.exclude,
        num_pairs=len(query) * len(gallery),
        num_hidden_itself=int(bearers(query.item, gallery.item).length.sum()),
        num_hidden_by_rule=by_rule,
        num_queries=len(query),
        num_unmatched=num_unmatched,
    )


def unknown_messages(query: Labels, gallery: Labels, protocol: Protocol) -> list[str]:
    """Report the items on either side whose camera or scene is unknown, so that the rule cannot be applied to them.

    Args:
        query, gallery: labels of both sides; the same object where the queries are the gallery.
        protocol: the rule.

    Returns:
        One line for each kind of fault; empty where the rule can be applied to all items.
    """
    field = EXCLUSION_FIELD[protocol.exclude]
    if field is None:
        return []
    sides = {"queries": query} | ({} if gallery is query else {"gallery items": gallery})
    counts = {name: (int((getattr(labels, field) == UNKNOWN).sum()), len(labels)) for name, labels in sides.items()}
    return describe_unknown(protocol.exclude, counts)
