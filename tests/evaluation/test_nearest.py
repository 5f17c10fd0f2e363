from __future__ import annotations

import math

import pytest
import torch

from trireid.evaluation.nearest import BLOCK, fits_key, key_distance, key_position, nearest, order_keys, row_slices


def literal_nearest(distance, count):
    return [sorted(range(len(row)), key=lambda column: (row[column], column))[:count] for row in distance.tolist()]


SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0, math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_keys_order_by_value_then_position(dtype):
    values = torch.tensor([SPECIAL]).to(dtype)
    key = order_keys(values)
    assert len(key.unique()) == len(SPECIAL)
    assert key.sort(dim=1).indices.tolist() == literal_nearest(values, len(SPECIAL))


def test_a_key_gives_back_its_distance_and_position():
    values, position = torch.tensor([SPECIAL]), torch.arange(len(SPECIAL)) * 100_000_000
    key = order_keys(values, position)
    assert torch.equal(key_distance(key), values)
    assert torch.equal(key_position(key)[0], position)


def test_wide_types_keep_their_order():
    close = torch.tensor([[1.0 + 1e-12, 1.0, math.inf, 1.0, -math.inf, 1.0 + 1e-12]], dtype=torch.float64)
    assert order_keys(close).argsort(dim=1).tolist() != literal_nearest(close, 6)  # 32 bits do not tell them apart
    assert order_keys(fits_key(close)).argsort(dim=1).tolist() == literal_nearest(close, 6)
    whole = torch.tensor([[3, 1, 2, 1]])
    assert order_keys(fits_key(whole)).argsort(dim=1).tolist() == [[1, 3, 2, 0]]


@pytest.mark.parametrize("num_columns", [1, 5, BLOCK, 4 * BLOCK - 1, 4 * BLOCK, 9 * BLOCK + 7])
@pytest.mark.parametrize("num_values", [1, 3, 1000])
def test_nearest_is_the_head_of_the_sorted_list(num_columns, num_values):
    generator = torch.Generator().manual_seed(num_columns)
    distance = torch.randint(0, num_values, (6, num_columns), generator=generator).float()
    distance[0, ::2] = math.inf
    distance[1] = math.inf
    for count in {1, min(3, num_columns), num_columns}:
        assert nearest(distance, count).tolist() == literal_nearest(distance, count)


def test_nearest_of_many_ties_across_blocks_keeps_the_first():
    distance = torch.ones(1, 40 * BLOCK)
    distance[0, 7 * BLOCK + 3] = 0.0
    assert nearest(distance, 3).tolist() == [[7 * BLOCK + 3, 0, 1]]


def test_row_slices_cover_all_rows_once():
    assert [list(range(s.start, s.stop)) for s in row_slices(5, 2)] == [[0, 1], [2, 3], [4]]
    assert not list(row_slices(0, 2))
