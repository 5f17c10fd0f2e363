"""What a gallery answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trireid.embedding.embeddings import ModelIdentity


@dataclass(frozen=True)
class Added:
    """What an `add` did.

    Attributes:
        added: items that were not there before.
        replaced: items whose key was there already.
        unrelated: the cosine of unrelated items, where this call measured it for the first time, else None.
    """

    added: int
    replaced: int
    unrelated: float | None = None


@dataclass(frozen=True)
class Match:
    """One item of a gallery beside a query; of a query by identity, the nearest item of that identity.

    Attributes:
        key, identity, camera, scene, time: of the item; None where not known.
        distance: that of `docs/missing.md`, in [0, 2]; of a query by identity with `mean`, the mean over its items.
        similarity: cosine over the blocks that both have; None where they share none.
        compared: the modalities whose blocks were compared.
        false_match_rate: share of pairs of different identities that are at least as similar; None without a
            calibration, or where it has no such pair of presences.
        accepted: whether it passes the threshold; None without one, or where a false match rate is not calibrated for
            this pair of presences.
        images: paths by modality.
        metadata: further facts.
        rate_is_bound: whether the rate is at most `false_match_rate`, and how much lower is not known: the item is more
            similar than the highest calibrated threshold.
    """

    key: str
    identity: str | None
    distance: float
    similarity: float | None
    compared: tuple[str, ...]
    false_match_rate: float | None = None
    accepted: bool | None = None
    camera: str | None = None
    scene: str | None = None
    time: float | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    rate_is_bound: bool = False


@dataclass(frozen=True)
class QueryResult:
    """The answer to one query.

    Attributes:
        key: of the query.
        matches: nearest first, ties in the order of keys.
        known: with a threshold, whether any match passes it: False means unknown, every match was refused. None
            without a threshold, and where none passes but some could not be decided (`Match.accepted`).
        threshold: the largest distance that passes; with a false match rate, for the presences of the first match.
    """

    key: str | None
    matches: tuple[Match, ...]
    known: bool | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class GalleryInfo:
    """A gallery in numbers.

    Attributes:
        name, location: where it is.
        items: how many.
        by_presence: how many of each presence, such as `rgb,nir`; those that occur.
        model: what made its vectors.
        partial: whether parts of items are stored, for queries with fewer modalities.
        root: folder that paths are relative to; None: paths are whole.
        created, created_by: when, and by which version of trireid.
        unrelated: cosine of unrelated items; None: not measured yet, 0 is used.
        unrelated_from: number of items that it was measured on.
        calibrated: whether it holds a calibration.
    """

    name: str
    location: str
    items: int
    by_presence: Mapping[str, int]
    model: ModelIdentity
    partial: bool
    root: str | None
    created: str
    created_by: str
    unrelated: float | None
    unrelated_from: int
    calibrated: bool
