"""k-reciprocal encodings as sparse rows: made, expanded and compared without a matrix of all pairs of items.

Weights are whole numbers, where `ONE` stands for 1: their sums do not depend on the order of addition, so that results
are the same each time and on every device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trireid.evaluation.nearest import LAST, columns_at_a_time, key_position, merge_nearest, row_slices, rows_at_a_time

ONE = 2**30
"""The number for weight 1: the sums of a row fit into 32 bits, and rounding takes less than 1e-8 of an overlap."""

WORK = 2**21
"""Products of sparse rows at a time on a CPU; a device takes eight times as many."""


class Distances(Protocol):
    """Euclidean distances of a set of items to itself, computed on demand."""

    @property
    def num_items(self) -> int:
        """Items of the set."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the distances are."""
        ...

    def block(self, rows: slice, columns: slice) -> Tensor:
        """The distances of some items to others: `(n, m)` float32, free to be written over."""
        ...

    def pairs(self, row: Tensor, column: Tensor) -> Tensor:
        """The distances of pairs: `(p,)`, `(p,)` int64 -> `(p,)` float32."""
        ...


@dataclass(frozen=True)
class SparseRows:
    """A matrix of which only the entries above 0 are kept.

    Attributes:
        start: `(n + 1,)` int64, where the entries of each row start.
        column: `(entries,)` int64, ascending in a row.
        value: `(entries,)` int32, in parts of `ONE`.
    """

    start: Tensor
    column: Tensor
    value: Tensor

    @property
    def length(self) -> Tensor:
        """Entries of each row: `(n,)`."""
        return self.start.diff()


def neighbourhoods(distances: Distances, count: int, *, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Nearest items of each, itself first and ties by position, and its largest distance: `(N, count)`, `(N,)`."""
    num_items, device = distances.num_items, distances.device
    count = min(count, num_items)
    neighbours = torch.empty(num_items, count, dtype=torch.int64, device=device)
    largest = torch.zeros(num_items, device=device)
    num_columns = columns_at_a_time(num_items, device)
    for rows in row_slices(num_items, rows_at_a_time(chunk_size, num_columns, device)):
        key = torch.full((rows.stop - rows.start, count), LAST, device=device)
        for columns in row_slices(num_items, num_columns):
            distance = distances.block(rows, columns)  # (n, m)
            largest[rows] = torch.maximum(largest[rows], distance.amax(dim=1))
            _put_first(distance, rows, columns)
            key = merge_nearest(key, distance, columns.start)
        neighbours[rows] = key_position(key)
    return neighbours, largest


def _put_first(distance: Tensor, rows: slice, columns: slice) -> None:
    """Make the distance of each item to itself the smallest of all, where it lies in this block."""
    shift = rows.start - columns.start
    if -distance.shape[0] < shift < distance.shape[1]:
        distance.diagonal(shift).fill_(-1.0)


def encode(distances: Distances, neighbours: Tensor, largest: Tensor, *, k1: int, chunk_size: int) -> SparseRows:
    """Weights of each item's expanded k-reciprocal set, rows summing to 1: `(N, k)`, `(N,)` -> N rows.

    The reciprocal set of an item takes in that of a member (at half of k1) when more than two thirds of it are already
    members; weights are exp(-squared distance / largest squared distance).
    """
    wide = neighbours[:, : k1 + 1]
    narrow = neighbours[:, : round(k1 / 2) + 1]
    wide_set = _reciprocal(wide, chunk_size)
    narrow_set = _reciprocal(narrow, chunk_size)
    parts = []
    for rows in row_slices(len(neighbours), chunk_size):
        column, is_member = _expanded_sets(wide_set[rows], narrow_set)
        row, place = is_member.nonzero(as_tuple=True)
        squared = (distances.pairs(row + rows.start, column[row, place]) / largest[rows][row]).square_()
        weight = torch.zeros(column.shape, device=column.device)
        weight[row, place] = torch.exp(-squared)
        weight /= weight.sum(dim=1, keepdim=True)
        parts.append((is_member.sum(dim=1), column[row, place], (weight[row, place] * ONE).round_().int()))
    return _joined(parts)


def expand(encoding: SparseRows, neighbours: Tensor, *, chunk_size: int) -> SparseRows:
    """Local query expansion: each row becomes the mean of its neighbours' rows: N rows, `(N, k2)` -> N rows."""
    num_items, num_neighbours = neighbours.shape
    parts = []
    for rows in row_slices(num_items, rows_at_a_time(chunk_size, num_items, neighbours.device)):
        neighbour = neighbours[rows]
        owner, entry = _entries(encoding, neighbour.flatten())
        total = torch.zeros(len(neighbour), num_items, dtype=torch.int32, device=neighbours.device)
        place = torch.div(owner, num_neighbours, rounding_mode="floor") * num_items + encoding.column[entry]
        total.view(-1).scatter_add_(0, place, torch.div(encoding.value[entry], num_neighbours).round_().int())
        row, column = total.nonzero(as_tuple=True)
        parts.append((torch.bincount(row, minlength=len(neighbour)), column, total[row, column]))
    return _joined(parts)


def overlaps(query: SparseRows, gallery: SparseRows, num_columns: int) -> Iterator[tuple[slice, Tensor]]:
    """Sums of minima of all pairs of rows, a few queries at a time: their slice and `(n, G)` float32 in [0, 1].

    Each entry of a query is compared with the entries of its column alone.
    """
    by_column = _transposed(gallery, num_columns)
    num_gallery = len(gallery.length)
    cumulated = torch.cat([query.start.new_zeros(1), by_column.length[query.column].cumsum(dim=0)])
    work = cumulated[query.start]  # (Q + 1,) products up to each query
    limit = WORK if query.column.device.type == "cpu" else 8 * WORK
    for rows in _slices_of_work(work.tolist(), num_gallery, limit):
        entries = slice(int(query.start[rows.start]), int(query.start[rows.stop]))
        row = torch.repeat_interleave(query.length[rows])  # (entries,) which query of the slice
        owner, meeting = _entries(by_column, query.column[entries])
        place = row[owner] * num_gallery + by_column.column[meeting]
        low = torch.minimum(query.value[entries][owner], by_column.value[meeting])
        overlap = low.new_zeros((rows.stop - rows.start) * num_gallery).scatter_add_(0, place, low)
        yield rows, overlap.view(-1, num_gallery).float().div_(ONE)


def part_of(rows: SparseRows, part: slice) -> SparseRows:
    """Some consecutive rows."""
    start = rows.start[part.start : part.stop + 1]
    entries = slice(int(start[0]), int(start[-1]))
    return SparseRows(start - start[0], rows.column[entries], rows.value[entries])


def _reciprocal(neighbours: Tensor, chunk_size: int) -> Tensor:
    """The neighbours that are mutual, with N in place of the others: `(N, k)` -> `(N, k)` int64."""
    parts = []
    for rows in row_slices(len(neighbours), chunk_size):
        part = neighbours[rows]
        itself = torch.arange(rows.start, rows.stop, device=part.device)[:, None, None]
        is_mutual = (neighbours[part] == itself).any(dim=-1)  # (n, k, k) -> (n, k)
        parts.append(part.masked_fill(~is_mutual, len(neighbours)))
    return torch.cat(parts)


def _expanded_sets(wide_set: Tensor, narrow_set: Tensor) -> tuple[Tensor, Tensor]:
    """Each item's expanded set: `(n, k)`, `(N, h)` -> ascending items `(n, k + k * h)`, and which places count."""
    nobody = len(narrow_set)
    members = wide_set.sort(dim=1).values  # (n, k)
    candidate = narrow_set[wide_set.clamp(max=nobody - 1)]  # (n, k, h)
    candidate = candidate.masked_fill(wide_set[:, :, None] == nobody, nobody)
    is_candidate = candidate != nobody
    place = torch.searchsorted(members, candidate.flatten(1)).clamp_(max=members.shape[1] - 1)
    known = (members.gather(1, place) == candidate.flatten(1)).view_as(candidate) & is_candidate
    accepted = 3 * known.sum(dim=-1) > 2 * is_candidate.sum(dim=-1)  # (n, k)
    offered = candidate.masked_fill_(~accepted[:, :, None] | known, nobody)
    column = torch.cat([members, offered.flatten(1)], dim=1).sort(dim=1).values
    counts = column != nobody
    counts[:, 1:] &= column[:, 1:] != column[:, :-1]
    return column, counts


def _entries(rows: SparseRows, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of chosen rows, one row after the other: `(c,)` -> which choice `(e,)`, which entry `(e,)`."""
    length = rows.length[chosen]
    owner = torch.repeat_interleave(length)
    shift = rows.start[chosen] - (length.cumsum(dim=0) - length)  # (c,)
    return owner, torch.arange(len(owner), device=owner.device) + shift[owner]


def _joined(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> SparseRows:
    """Rows out of parts, each: entries per row, columns, values."""
    length, column, value = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return SparseRows(torch.cat([length.new_zeros(1), length.cumsum(dim=0)]), column, value)


def _transposed(rows: SparseRows, num_columns: int) -> SparseRows:
    """The same entries by column."""
    column, order = rows.column.sort(stable=True)
    length = torch.bincount(column, minlength=num_columns)
    row = torch.repeat_interleave(rows.length)
    return SparseRows(torch.cat([length.new_zeros(1), length.cumsum(dim=0)]), row[order], rows.value[order])


def _slices_of_work(work: Sequence[int], num_columns: int, limit: int) -> Iterator[slice]:
    """Slices of rows whose work and results stay below a limit; at least one row each."""
    start, num_rows = 0, len(work) - 1
    while start < num_rows:
        stop = start + 1
        while stop < num_rows and work[stop + 1] - work[start] + (stop + 1 - start) * num_columns <= limit:
            stop += 1
        yield slice(start, stop)
        start = stop
