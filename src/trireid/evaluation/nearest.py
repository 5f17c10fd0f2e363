"""The order of distances, ties included: keys that are all different, and the nearest items without a full sort."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LAST = torch.iinfo(torch.int64).max
"""A key that sorts after those of all items."""

CACHED = 2**19
"""How many numbers of 8 bytes the second-level caches of a CPU hold."""

FEWEST_ROWS = 32  # with fewer, a matrix product reads its columns too often
MOST_COLUMNS = CACHED // FEWEST_ROWS

BLOCK = 32  # items whose smallest distance stands for them; few enough to read again, many enough to save work


def order_keys(distance: Tensor, position: Tensor | None = None) -> Tensor:
    """Numbers that order the items of each row by distance and then by position, no two of a row alike.

    Args:
        distance: `(Q, G)` of at most 32 bits, +-inf allowed, NaN not; 0.0 and -0.0 are equal.
        position: int64 in [0, 2^31), `(G,)` or `(Q, G)`; None counts the columns.

    Returns:
        `(Q, G)` int64: the distance in the upper half, the position in the lower.
    """
    if position is None:
        position = torch.arange(distance.shape[1], device=distance.device)
    bits = (distance.float() + 0.0).view(torch.int32)  # adding 0 makes -0.0 into 0.0
    return _turned(bits).long().bitwise_left_shift_(32).bitwise_or_(position)


def key_position(key: Tensor) -> Tensor:
    """The position that a key holds, of any shape."""
    return key & 0xFFFFFFFF


def key_distance(key: Tensor) -> Tensor:
    """The distance that a key holds, float32."""
    return _turned((key >> 32).int()).view(torch.float32)


def _turned(bits: Tensor) -> Tensor:
    """Bits of floats as whole numbers of the same order, and back: the order of negative floats is reversed."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def fits_key(distance: Tensor) -> Tensor:
    """Distances of a type that `order_keys` takes: wider ones become their rank in the row, ties by position."""
    if distance.dtype.itemsize <= 4 and distance.dtype.is_floating_point:
        return distance
    order = distance.sort(dim=1, stable=True).indices
    place = torch.arange(distance.shape[1], device=distance.device, dtype=torch.float32)
    return torch.empty_like(order, dtype=torch.float32).scatter_(1, order, place.expand(order.shape))


def nearest(distance: Tensor, count: int) -> Tensor:
    """The `count` items of the smallest distance in each row, nearest first, ties by position.

    They lie in those `count` blocks of columns whose own smallest distances come first; only these blocks are
    searched item by item.

    Args:
        distance: `(Q, G)` as in `order_keys`.
        count: number of items, at most G.

    Returns:
        `(Q, count)` int64 columns.
    """
    num_rows, num_columns = distance.shape
    num_blocks = num_columns // BLOCK
    if num_blocks <= count:
        return _first(order_keys(distance), count)
    whole = num_blocks * BLOCK
    smallest = distance[:, :whole].unflatten(1, (num_blocks, BLOCK)).amin(dim=2)  # (Q, blocks)
    block = _first(order_keys(smallest), count)  # (Q, count)
    column = (block[:, :, None] * BLOCK + torch.arange(BLOCK, device=distance.device)).flatten(1)
    rest = torch.arange(whole, num_columns, device=distance.device).expand(num_rows, -1)
    column = torch.cat([column, rest], dim=1)  # (Q, count * BLOCK + rest)
    return key_position(order_keys(distance.gather(1, column), column).topk(count, dim=1, largest=False).values)


def merge_nearest(key: Tensor, distance: Tensor, offset: int, *, hidden: Tensor | None = None) -> Tensor:
    """The smallest keys of those so far and of some more items: `(Q, count)`, `(Q, G)` -> `(Q, count)`, ascending.

    Args:
        key: `(Q, count)` as of `order_keys`, `LAST` where there are fewer.
        distance: `(Q, G)` to the items from position `offset` on.
        offset: position of the first of them.
        hidden: `(Q, G)` bool, items that get no place; their distance is inf.
    """
    count = key.shape[1]
    column = nearest(distance, min(count, distance.shape[1]))
    found = order_keys(distance.gather(1, column), column + offset)
    if hidden is not None:
        found.masked_fill_(hidden.gather(1, column), LAST)
    return torch.cat([key, found], dim=1).topk(count, dim=1, largest=False).values


def _first(key: Tensor, count: int) -> Tensor:
    """Positions of the smallest keys, in order: `(Q, G)` -> `(Q, count)`."""
    return key_position(key.topk(count, dim=1, largest=False, sorted=True).values)


def row_slices(num_rows: int, chunk_size: int) -> Iterator[slice]:
    """Slices that cover the rows, `chunk_size` at a time."""
    return (slice(start, min(start + chunk_size, num_rows)) for start in range(0, num_rows, chunk_size))


def rows_at_a_time(chunk_size: int, num_columns: int, device: torch.device) -> int:
    """Rows to work on at once: on a CPU fewer than allowed, so that the next step finds its data in the cache."""
    return chunk_size if device.type != "cpu" else min(chunk_size, max(FEWEST_ROWS, CACHED // max(num_columns, 1)))


def columns_at_a_time(num_columns: int, device: torch.device) -> int:
    """Columns to work on at once, so that the fewest rows fit into the cache of a CPU; on a device all of them."""
    return max(1, num_columns if device.type != "cpu" else min(num_columns, MOST_COLUMNS))
