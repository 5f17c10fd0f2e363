"""Ranking figures of re-identification: mAP, mINP and CMC as pure functions of distances and labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trireid.errors import InputError
from trireid.evaluation.protocols import labels_to, ranking_masks, take
from trireid.types import Labels, Protocol


@dataclass(frozen=True)
class RankMetrics:
    """The figures of one ranking, all in [0, 1], and the counts behind them.

    Attributes:
        mAP: mean over the queries of the average precision of their filtered ranked list.
        mINP: mean over the queries of (number of matches) / (rank of the last match).
        cmc: `(max_rank,)` float64 on the CPU; entry r - 1 is the share of queries with a match among the first r.
        num_queries: queries given, with those below.
        num_unmatched: queries without any valid match; they are left out of every mean.
        average_precision: `(Q,)` float64 on the CPU, NaN for an unmatched query.
        ranks: the ranks that `as_dict` shows.
    """

    mAP: float
    mINP: float
    cmc: Tensor
    num_queries: int
    num_unmatched: int
    average_precision: Tensor
    ranks: tuple[int, ...] = (1, 5, 10)

    @property
    def rank1(self) -> float:
        """Share of queries whose first item is right."""
        return self.rank(1)

    @property
    def rank5(self) -> float:
        """Share of queries with a right item among the first five."""
        return self.rank(5)

    @property
    def rank10(self) -> float:
        """Share of queries with a right item among the first ten."""
        return self.rank(10)

    def rank(self, rank: int) -> float:
        """CMC at a rank, counted from 1."""
        if not 1 <= rank <= len(self.cmc):
            raise InputError(f"rank {rank} was not computed; allowed are 1 to {len(self.cmc)} (max_rank)")
        return float(self.cmc[rank - 1])

    def as_dict(self) -> dict[str, float]:
        """The figures by name: mAP, mINP, rank1, rank5, rank10 (or the ranks that were asked for)."""
        return {"mAP": self.mAP, "mINP": self.mINP} | {f"rank{rank}": self.rank(rank) for rank in self.ranks}


def rank_metrics(
    distance: Tensor,
    query: Labels,
    gallery: Labels,
    protocol: Protocol,
    *,
    ranks: tuple[int, ...] = (1, 5, 10),
    max_rank: int = 50,
    chunk_size: int = 256,
) -> RankMetrics:
    """Compute mAP, mINP and CMC of a distance matrix, on the matrix's device.

    Each query ranks the gallery items that its protocol lets it see, nearest first; equal distances keep the order
    of the gallery, so the figures do not depend on device or chunk size.

    Args:
        distance: `(Q, G)`, smaller is nearer; +-inf is allowed, NaN is not.
        query: labels of the rows, `(Q,)` each.
        gallery: labels of the columns, `(G,)` each.
        protocol: which items a query must not see.
        ranks: ranks to name in `as_dict`.
        max_rank: length of the CMC curve (at least the largest of `ranks`).
        chunk_size: queries at a time; bounds the memory to about 50 bytes x chunk_size x G.

    Raises:
        InputError: shapes or ranks do not fit, a distance is NaN, or no query at all has a valid match.
    """
    _check(distance, query, gallery, ranks=ranks, chunk_size=chunk_size)
    query, gallery = labels_to(query, distance.device), labels_to(gallery, distance.device)
    chunks = [
        _query_statistics(distance[rows], *ranking_masks(take(query, rows), gallery, protocol))
        for rows in _row_slices(len(query), chunk_size)
    ]
    average_precision, inverse_penalty, first_rank = (torch.cat(column).cpu() for column in zip(*chunks, strict=True))
    matched = average_precision.isfinite()
    num_matched = int(matched.sum())
    if num_matched == 0:
        raise InputError(
            f"none of the {len(query)} queries has a valid match in the gallery under protocol {protocol.name!r} "
            f"(exclude: {protocol.exclude}); check identities and cameras, or choose another exclusion"
        )
    curve_ranks = torch.arange(1, max(max_rank, *ranks) + 1)
    hits = first_rank[matched][:, None] <= curve_ranks  # (matched, max_rank)
    return RankMetrics(
        mAP=float(average_precision[matched].mean()),
        mINP=float(inverse_penalty[matched].mean()),
        cmc=hits.double().mean(dim=0),
        num_queries=len(query),
        num_unmatched=len(query) - num_matched,
        average_precision=average_precision,
        ranks=tuple(ranks),
    )


def _query_statistics(distance: Tensor, matches: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Average precision, matches / last rank and rank of the first match: `(Q,)` float64 each, NaN if unmatched."""
    order = distance.sort(dim=1, stable=True).indices  # (Q, G)
    found = matches.gather(1, order)
    rank = (~excluded.gather(1, order)).cumsum(dim=1)  # place among the items that may be seen
    hit = found.cumsum(dim=1)  # right items up to here
    num_matches = found.sum(dim=1).double()
    precision = torch.where(found, hit.double() / rank.clamp(min=1), 0.0)
    num_places = rank.shape[1]
    last = torch.where(found, rank, 0).amax(dim=1)
    first = torch.where(found, rank, num_places + 1).amin(dim=1)
    unmatched = num_matches == 0
    return (
        precision.sum(dim=1) / num_matches,  # 0 / 0 is NaN: unmatched
        num_matches / last,
        first.double().masked_fill(unmatched, torch.nan),
    )


@dataclass(frozen=True)
class RankedList:
    """The first places of each query's list, excluded items not among them.

    Attributes:
        index: `(Q, top)` int64 gallery positions, nearest first; -1 where the list is shorter.
        matches: `(Q, top)` bool, which of them are right.
        distance: `(Q, top)`, inf where the list is shorter.
    """

    index: Tensor
    matches: Tensor
    distance: Tensor


def ranked_list(distance: Tensor, query: Labels, gallery: Labels, protocol: Protocol, *, top: int = 10) -> RankedList:
    """The first `top` gallery items of each query, in the very order that `rank_metrics` counts.

    Args: as `rank_metrics`; distance is `(Q, G)`.
    """
    _check(distance, query, gallery, ranks=(top,), chunk_size=1)
    query, gallery = labels_to(query, distance.device), labels_to(gallery, distance.device)
    matches, excluded = ranking_masks(query, gallery, protocol)
    order = distance.sort(dim=1, stable=True).indices
    hidden = excluded.gather(1, order)
    # A second stable sort moves the excluded items behind all others and keeps both orders.
    order = order.gather(1, hidden.to(torch.int8).sort(dim=1, stable=True).indices)[:, :top]
    hidden = excluded.gather(1, order)
    return RankedList(
        index=order.masked_fill(hidden, -1),
        matches=matches.gather(1, order),
        distance=distance.gather(1, order).masked_fill(hidden, torch.inf),
    )


def pairwise_distance(first: Tensor, second: Tensor, *, chunk_size: int = 1024) -> Tensor:
    """Euclidean distances of all pairs: `(Q, D)`, `(G, D)` -> `(Q, G)` float32. Normalise before, if wanted.

    Computed in float64 by one matrix product a chunk around the common mean, so that features which are nearly
    alike (an untrained model) keep their order and equal features have distance 0.

    Raises:
        InputError: the shapes do not fit.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(
            f"pairwise_distance got {tuple(first.shape)} and {tuple(second.shape)}; allowed are (Q, D) and (G, D)"
        )
    second = second.double()
    mean = second.mean(dim=0) if len(second) else second.new_zeros(second.shape[1])
    second = second - mean
    second_norm = second.square().sum(dim=1)  # (G,)
    result = torch.empty(len(first), len(second), dtype=torch.float32, device=first.device)
    for rows in _row_slices(len(first), chunk_size):
        part = first[rows].double() - mean
        norms = part.square().sum(dim=1)[:, None] + second_norm  # (chunk, G)
        squared = norms - 2.0 * part @ second.T
        # Rounding leaves up to 1e-12 of the norms for equal features, and may leave it negative.
        result[rows] = squared.masked_fill(squared <= 1e-12 * norms, 0.0).sqrt()
    return result


def _row_slices(num_rows: int, chunk_size: int) -> Iterator[slice]:
    """Slices that cover the rows, `chunk_size` at a time."""
    return (slice(start, start + chunk_size) for start in range(0, num_rows, chunk_size))


def _check(distance: Tensor, query: Labels, gallery: Labels, *, ranks: tuple[int, ...], chunk_size: int) -> None:
    """Raise InputError unless the arguments of a ranking fit together."""
    if distance.shape != (len(query), len(gallery)) or distance.numel() == 0:
        raise InputError(
            f"distance has shape {tuple(distance.shape)}; {len(query)} query and {len(gallery)} gallery labels "
            f"need {(len(query), len(gallery))}, each at least 1"
        )
    if not ranks or min(ranks) < 1 or chunk_size < 1:
        raise InputError(f"ranks {ranks} and chunk_size {chunk_size} must be at least 1")
    num_nan = int(distance.isnan().sum())
    if num_nan:
        row = int(distance.isnan().any(dim=1).nonzero()[0])
        raise InputError(
            f"{num_nan} distances are NaN (first in query row {row}); a ranking needs numbers, check the features"
        )
