"""Ranking metrics of re-identification: mAP, mINP and CMC as pure functions of distances and labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trireid.errors import InputError
from trireid.evaluation.checks import check_distances, check_labels, check_sizes
from trireid.evaluation.distance import centre_of, centred, check_features, check_widths, euclidean
from trireid.evaluation.nearest import LAST, fits_key, key_position, order_keys, row_slices, rows_at_a_time
from trireid.evaluation.protocols import bearers, equal_known, labels_to, ranking_masks, take
from trireid.types import Labels, Protocol

_Items = tuple[Tensor, Tensor]
"""Gallery columns for each row, `(Q, R)` int64, and which of them are real, `(Q, R)` bool: see `protocols.Bearers`."""


@dataclass(frozen=True)
class RankMetrics:
    """The metrics of one ranking, all in [0, 1], and the counts behind them.

    Attributes:
        mAP: mean over the queries of the average precision of their filtered ranked list.
        mINP: mean over the queries of (number of matches) / (rank of the last match).
        cmc: `(max_rank,)` float64 on the CPU; entry r - 1 is the share of queries with a match among the first r.
        num_queries: number of queries, including the unmatched ones.
        num_unmatched: number of queries without any valid match; they are left out of every mean.
        average_precision: `(Q,)` float64 on the CPU, NaN for an unmatched query.
        inverse_penalty: `(Q,)`, (number of matches) / (rank of the last match), likewise.
        first_rank: `(Q,)`, rank of the first match, likewise.
        ranks: the ranks that `as_dict` shows.
    """

    mAP: float
    mINP: float
    cmc: Tensor
    num_queries: int
    num_unmatched: int
    average_precision: Tensor
    inverse_penalty: Tensor
    first_rank: Tensor
    ranks: tuple[int, ...] = (1, 5, 10)

    @property
    def rank1(self) -> float:
        """Share of queries whose first item is a match."""
        return self.rank(1)

    @property
    def rank5(self) -> float:
        """Share of queries with a match among the first five."""
        return self.rank(5)

    @property
    def rank10(self) -> float:
        """Share of queries with a match among the first ten."""
        return self.rank(10)

    def rank(self, rank: int) -> float:
        """CMC at a rank, counted from 1.

        Raises:
            InputError: the rank lies outside the curve.
        """
        if not 1 <= rank <= len(self.cmc):
            raise InputError(f"rank {rank} was not computed; allowed are 1 to {len(self.cmc)} (max_rank)")
        return float(self.cmc[rank - 1])

    def of_queries(self, rows: Tensor) -> RankMetrics:
        """The same metrics over some of the queries: rows `(Q,)`, bool or positions.

        Raises:
            InputError: none of these queries has a valid match.
        """
        found = _means(
            self.average_precision[rows],
            self.inverse_penalty[rows],
            self.first_rank[rows],
            ranks=self.ranks,
            max_rank=len(self.cmc),
        )
        if found is None:
            raise InputError("none of the chosen queries has a valid match in the gallery: choose others")
        return found

    def as_dict(self) -> dict[str, float]:
        """The metrics by name: mAP, mINP, and CMC at each of `ranks`, such as rank1."""
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
    of the gallery, so the metrics do not depend on device or chunk size.

    Args:
        distance: `(Q, G)`, smaller is nearer; +-inf is allowed, NaN is not.
        query: labels of the rows, `(Q,)` each.
        gallery: labels of the columns, `(G,)` each.
        protocol: which items a query must not see.
        ranks: ranks to name in `as_dict`.
        max_rank: length of the CMC curve (at least the largest of `ranks`).
        chunk_size: queries at a time, at most; bounds the memory to about 40 bytes x chunk_size x G.

    Source: CMC and mAP: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015; mINP: Ye et al.,
        Deep Learning for Person Re-identification: A Survey and Outlook, TPAMI 2021, section 4.1.

    Raises:
        InputError: shapes or ranks do not fit, a distance is NaN, or no query has a valid match.

    Example:
        >>> identity, camera, scene = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1], [-1, -1, -1, -1]])
        >>> labels = Labels(identity, camera, scene, item=torch.arange(4))
        >>> features = torch.tensor([[0.0], [1.0], [1.4], [3.0]])
        >>> metrics = rank_metrics(pairwise_distance(features, features), labels, labels, Protocol("cross-camera"))
        >>> round(metrics.mAP, 4), metrics.rank1
        (0.7083, 0.5)
    """
    _check(distance, query, gallery, ranks=ranks, max_rank=max_rank, chunk_size=chunk_size)
    query, gallery = labels_to(query, distance.device), labels_to(gallery, distance.device)
    relatives, itself = bearers(query.identity, gallery.identity), bearers(query.item, gallery.item)
    chunks = [
        _query_statistics(distance[rows], take(query, rows), gallery, protocol, relatives.of(rows), itself.of(rows))
        for rows in row_slices(len(query), rows_at_a_time(chunk_size, len(gallery), distance.device))
    ]
    average_precision, inverse_penalty, first_rank = (torch.cat(column).cpu() for column in zip(*chunks, strict=True))
    length = max(max_rank, *ranks)
    metrics = _means(average_precision, inverse_penalty, first_rank, ranks=tuple(ranks), max_rank=length)
    if metrics is None:
        raise _no_match(len(query), protocol)
    return metrics


def _means(
    average_precision: Tensor, inverse_penalty: Tensor, first_rank: Tensor, *, ranks: tuple[int, ...], max_rank: int
) -> RankMetrics | None:
    """The metrics of queries of which these are known, `(Q,)` each and NaN if unmatched; None if none is matched."""
    matched = average_precision.isfinite()
    num_matched = int(matched.sum())
    if num_matched == 0:
        return None
    curve_ranks = torch.arange(1, max_rank + 1)
    return RankMetrics(
        mAP=float(average_precision[matched].mean()),
        mINP=float(inverse_penalty[matched].mean()),
        cmc=(first_rank[matched][:, None] <= curve_ranks).double().mean(dim=0),  # (max_rank,)
        num_queries=len(average_precision),
        num_unmatched=len(average_precision) - num_matched,
        average_precision=average_precision,
        inverse_penalty=inverse_penalty,
        first_rank=first_rank,
        ranks=ranks,
    )


def _no_match(num_queries: int, protocol: Protocol) -> InputError:
    return InputError(
        f"none of the {num_queries} queries has a valid match in the gallery under protocol {protocol.name!r} "
        f"(exclude: {protocol.exclude}); check identities and cameras, or choose another exclusion"
    )


def _query_statistics(
    distance: Tensor, query: Labels, gallery: Labels, protocol: Protocol, relatives: _Items, itself: _Items
) -> tuple[Tensor, Tensor, Tensor]:
    """Average precision, matches / last rank and rank of the first match: `(Q,)` float64 each, NaN if unmatched.

    Only the gallery items of the query's own identity (its relatives) need a rank: one more than the number of
    visible items before them. A search among these few keys counts every item.
    """
    distance = fits_key(distance)
    key, order = _keys(distance, relatives).sort(dim=1)  # (Q, R)
    matches, hidden = ranking_masks(query, take(gallery, relatives[0].gather(1, order)), protocol)
    is_real = relatives[1].gather(1, order)
    found = matches & is_real
    if protocol.exclude == "cross_camera":
        unseen = ranking_masks(query, gallery, protocol)[1]
        rank = 1 + _count_before(distance, key, unseen=unseen)
    else:
        # What is hidden is a relative, or the item itself under another identity.
        stranger = _keys(distance, itself).masked_fill(equal_known(query.identity, gallery.identity[itself[0]]), LAST)
        num_hidden = (hidden & is_real).cumsum(dim=1) + (stranger[:, None, :] < key[:, :, None]).sum(dim=2)
        rank = 1 + _count_before(distance, key) - num_hidden
    hit = found.cumsum(dim=1)  # matches up to here
    num_matches = found.sum(dim=1).double()
    precision = torch.where(found, hit.double() / rank, 0.0)
    last = torch.where(found, rank, 0).amax(dim=1)
    first = torch.where(found, rank, distance.shape[1] + 1).amin(dim=1)
    return (
        precision.sum(dim=1) / num_matches,  # 0 / 0 is NaN: unmatched
        num_matches / last,
        first.double().masked_fill(num_matches == 0, torch.nan),
    )


def _keys(distance: Tensor, items: _Items) -> Tensor:
    """Keys of some items of each row, `LAST` where an item only fills up: `(Q, G)`, `(Q, R)` -> `(Q, R)`."""
    column, is_real = items
    return order_keys(distance.gather(1, column), column).masked_fill_(~is_real, LAST)


def _count_before(distance: Tensor, key: Tensor, *, unseen: Tensor | None = None) -> Tensor:
    """Number of items before each of some keys: `(Q, G)`, `(Q, R)` ascending -> `(Q, R)` int64.

    Args:
        distance: `(Q, G)`.
        key: `(Q, R)` as of `order_keys`, ascending.
        unseen: `(Q, G)` bool, items that do not count.
    """
    num_rows, num_keys = key.shape
    passed = torch.searchsorted(key, order_keys(distance), right=True)  # (Q, G) keys that do not sort after an item
    if unseen is not None:
        passed.masked_fill_(unseen, num_keys)
    # One list of bins for all rows: counting stays fast on a device that must be deterministic, unlike scattered sums.
    passed += torch.arange(num_rows, device=passed.device)[:, None] * (num_keys + 1)
    count = torch.bincount(passed.flatten(), minlength=num_rows * (num_keys + 1))
    return count.view(num_rows, num_keys + 1).cumsum(dim=1)[:, :-1]


@dataclass(frozen=True)
class RankedList:
    """The first places of each query's ranked list, without excluded items.

    Attributes:
        index: `(Q, top)` int64 gallery positions, nearest first; -1 where the list is shorter.
        matches: `(Q, top)` bool, which of them have the identity of the query.
        distance: `(Q, top)`, inf where the list is shorter.
    """

    index: Tensor
    matches: Tensor
    distance: Tensor


def ranked_list(distance: Tensor, query: Labels, gallery: Labels, protocol: Protocol, *, top: int = 10) -> RankedList:
    """The first `top` gallery items of each query, in the order in which `rank_metrics` counts them.

    Args: as `rank_metrics`; a distance of whole numbers gives a list of float64.
    """
    _check(distance, query, gallery, ranks=(1,), top=top)
    distance = distance if distance.is_floating_point() else distance.double()  # whole numbers have no infinity
    query, gallery = labels_to(query, distance.device), labels_to(gallery, distance.device)
    matches, excluded = ranking_masks(query, gallery, protocol)
    key = order_keys(fits_key(distance)).masked_fill_(excluded, LAST)
    key = key.topk(min(top, len(gallery)), dim=1, largest=False).values
    hidden = key == LAST
    order = key_position(key).masked_fill_(hidden, 0)
    return RankedList(
        index=order.masked_fill(hidden, -1),
        matches=matches.gather(1, order) & ~hidden,
        distance=distance.gather(1, order).masked_fill(hidden, torch.inf),
    )


def pairwise_distance(first: Tensor, second: Tensor, *, chunk_size: int = 1024) -> Tensor:
    """Euclidean distances of all pairs: `(Q, D)`, `(G, D)` -> `(Q, G)` float32.

    Computed in float64 by one matrix product per chunk around the common mean, so that features which are nearly
    equal (an untrained model) keep their order and equal features have distance 0. No item changes the distances of
    the others, see `distance.euclidean`.

    Args:
        first, second: features of any length; normalise before to compare directions only.
        chunk_size: rows of `first` at a time.

    Raises:
        InputError: the shapes do not fit, or a feature is NaN, infinite or too long for float32.

    Example:
        >>> pairwise_distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([[5., 1.]])
    """
    check_widths(first, second, name="pairwise_distance")
    check_sizes("pairwise_distance", chunk_size=chunk_size)
    check_features(first, "first")
    check_features(second, "second")
    centre = centre_of(second)
    columns = centred(second, centre)
    result = torch.empty(len(first), len(second), dtype=torch.float32, device=first.device)
    for rows in row_slices(len(first), chunk_size):
        result[rows] = euclidean(centred(first[rows], centre), columns)
    return result


def _check(distance: Tensor, query: Labels, gallery: Labels, *, ranks: tuple[int, ...], **sizes: int) -> None:
    """Raise InputError unless the arguments of a ranking fit together."""
    check_distances("a ranking", distance)
    check_labels("a ranking", query, gallery)
    if distance.shape != (len(query), len(gallery)) or distance.numel() == 0:
        raise InputError(
            f"distance has shape {tuple(distance.shape)}; {len(query)} query and {len(gallery)} gallery labels "
            f"need {(len(query), len(gallery))}, each at least 1"
        )
    if not ranks:
        raise InputError("no rank is given; name at least one, e.g. ranks=(1, 5, 10)")
    check_sizes("a ranking", **{f"rank {place}": rank for place, rank in enumerate(ranks, start=1)}, **sizes)
    if bool(distance.amax().isnan()):  # the largest of anything and NaN is NaN
        num_nan = int(distance.isnan().sum())
        row = int(distance.isnan().any(dim=1).nonzero()[0])
        raise InputError(
            f"{num_nan} distances are NaN (first in query row {row}); a ranking needs numbers, check the features"
        )
