"""Queries of a gallery: arguments checked, exclusions, thresholds, and results put together."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from trireid.embedding.items import Item
from trireid.errors import InputError, printable
from trireid.gallery.about import About
from trireid.gallery.camera_means import CameraMeans
from trireid.gallery.engine import Engine, Hit
from trireid.gallery.filters import both, literal
from trireid.gallery.layout import presence_codes
from trireid.gallery.lookup import existing
from trireid.gallery.results import Match, QueryResult
from trireid.gallery.rows import Row, check_vectors, checked_text, item_of
from trireid.gallery.search import Found, Probe, Searcher
from trireid.gallery.thresholds import Threshold
from trireid.names import Exclusion

if TYPE_CHECKING:
    from trireid.embedding.embeddings import Embeddings
    from trireid.evaluation.calibration import Calibration

Target = Literal["item", "identity"]
"""What a query finds."""
Reduce = Literal["best", "mean"]
"""How the distances of an identity's items become one."""
LARGEST_TOP = 10_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """The arguments of `Gallery.query`, checked; `where` is an expression."""

    top: int
    by: Target
    reduce: Reduce
    where: str
    exclude: Exclusion
    threshold: float | None
    fmr: float | None

    def __post_init__(self) -> None:
        if not isinstance(self.top, int) or isinstance(self.top, bool) or not 1 <= self.top <= LARGEST_TOP:
            raise InputError(f"top must be a whole number from 1 to {LARGEST_TOP:,}, given {printable(repr(self.top))}")
        for name, allowed in (("by", Target), ("reduce", Reduce), ("exclude", Exclusion)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise InputError(
                    f"{name} must be one of {', '.join(get_args(allowed))}, given {printable(repr(value), limit=60)}"
                )
        if self.threshold is not None and self.fmr is not None:
            raise InputError("give threshold (a distance) or fmr (a false match rate), not both")
        if self.threshold is not None and not _between(self.threshold, 0.0, 2.0):
            raise InputError(f"threshold must be a distance from 0 to 2, given {printable(repr(self.threshold))}")
        if self.fmr is not None and (not _between(self.fmr, 0.0, 1.0) or self.fmr == 0.0):
            raise InputError(f"fmr must be a false match rate above 0 and up to 1, given {printable(repr(self.fmr))}")
        if self.fmr is not None and self.by == "identity" and self.reduce == "mean":
            raise InputError("fmr is a rate of pairs of items: use it with reduce='best', or give threshold")


def _between(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and low <= value <= high


@dataclass(frozen=True)
class _Query:
    """One query: what is known about it, its feature and presence, and whether it is an item of the gallery."""

    item: Item
    feature: Any
    code: int
    is_own: bool


def answer(
    engine: Engine,
    about: About,
    calibration: Calibration | None,
    given: Embeddings | str | Sequence[str],
    choices: Choices,
    means: CameraMeans | None,
) -> list[QueryResult]:
    """See `Gallery.query`."""
    unrelated = about.unrelated or 0.0
    decide = Threshold(about.layout, unrelated, calibration, choices.threshold, choices.fmr)
    if isinstance(given, str) or (isinstance(given, Sequence) and all(isinstance(each, str) for each in given)):
        queries = _own(engine, about, [given] if isinstance(given, str) else list(given))
    else:
        queries = _foreign(about, cast("Embeddings", given), means)
    _report_unknown(queries, choices.exclude)
    probes = [_probe(query, choices) for query in queries]
    searcher = Searcher(engine, about.layout, unrelated)
    if choices.by == "item":
        found = [[(each.distance, each) for each in items] for items in searcher.items(probes, choices.top)]
    else:
        found = searcher.identities(probes, choices.top, mean=choices.reduce == "mean")
    results = [_result(query, ranked, about, decide) for query, ranked in zip(queries, found, strict=True)]
    decide.report()
    return results


def _own(engine: Engine, about: About, keys: list[str]) -> list[_Query]:
    layout, queries = about.layout, {}
    for key, row in existing(engine, keys, width=about.layout.row_width).items():
        code = int(row["presence"])
        queries[key] = _Query(item_of(row, None), layout.features(row["vector"][None], code)[0], code, True)
    return [queries[key] for key in keys]


def _foreign(about: About, embeddings: Embeddings, means: CameraMeans | None) -> list[_Query]:
    if not hasattr(embeddings, "vectors"):
        raise InputError(f"a query must be embeddings or keys, given {printable(repr(embeddings), limit=80)}")
    about.check_model(embeddings)
    check_vectors(embeddings, about.layout)
    embeddings = embeddings if means is None else means.subtract(embeddings)
    codes = presence_codes(np.asarray(embeddings.present))
    vectors = np.asarray(embeddings.vectors, dtype=np.float64)
    return [
        _Query(item, vector, int(code), False)
        for item, vector, code in zip(embeddings.items, vectors, codes, strict=True)
    ]


def _report_unknown(queries: Sequence[_Query], exclude: Exclusion) -> None:
    """Report queries that a rule cannot be applied to: what would be hidden from them is not known."""
    needed = {"camera": ("identity", "camera"), "scene": ("identity", "scene"), "cross_camera": ("camera",), "none": ()}
    without = sum(any(getattr(query.item, name) is None for name in needed[exclude]) for query in queries)
    if without:
        _log.warning(
            "%d of %d queries have no %s, so exclude=%s hides nothing from them",
            without,
            len(queries),
            " or no ".join(needed[exclude]),
            exclude,
        )


def _probe(query: _Query, choices: Choices) -> Probe:
    item, parts = query.item, [choices.where]
    if choices.by == "identity":
        parts.append('identity != ""')
    if choices.exclude == "cross_camera" and item.camera is not None:
        parts.append(f"camera != {literal(checked_text(item.camera, 'camera', repr(item.key)))}")
    return Probe(query.feature, query.code, both(*parts), _hides(query, choices.exclude))


def _hides(query: _Query, exclude: Exclusion) -> Callable[[Hit | Row], bool]:
    """What a query must not see, beside what its expression leaves out: few items, so they are read and dropped."""
    item = query.item
    own = item.key if query.is_own else None
    place = {"camera": item.camera, "scene": item.scene}.get(exclude)

    def hides(found: Hit | Row) -> bool:
        def value(name: str) -> str:
            return str(found[name] if isinstance(found, dict) else getattr(found, name))

        if own is not None and value("key") == own:
            return True
        return place is not None and value(exclude) == place and value("identity") == item.identity

    return hides


def _result(query: _Query, ranked: Sequence[tuple[float, Found]], about: About, decide: Threshold) -> QueryResult:
    matches = tuple(_match(query, distance, found, about, decide) for distance, found in ranked)
    verdicts = [match.accepted for match in matches]
    # One match that cannot be decided leaves the answer open, unless another one is accepted.
    known = None if not decide.is_used or (None in verdicts and True not in verdicts) else True in verdicts
    limit = decide.distance_of(query.code, int(ranked[0][1].row["presence"])) if ranked else decide.distance
    return QueryResult(query.item.key, matches, known, limit)


def _match(query: _Query, distance: float, found: Found, about: About, decide: Threshold) -> Match:
    item = item_of(found.row, None if about.root is None else Path(about.root))
    code = int(found.row["presence"])
    cosine = None if found.square is None else 1.0 - found.square / 2.0
    rate, is_bound = decide.rate(query.code, code, cosine)
    return Match(
        key=found.row["key"],
        identity=item.identity,
        distance=distance,
        similarity=cosine,
        compared=about.layout.compared(query.code, code),
        false_match_rate=rate,
        accepted=decide.accepts(query.code, code, distance, cosine),
        camera=item.camera,
        scene=item.scene,
        time=item.time,
        images=item.images,
        metadata=item.metadata,
        rate_is_bound=is_bound,
    )
