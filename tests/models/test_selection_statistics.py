import math

import pytest
import torch

from trireid.models.selection_statistics import kept_overlap, score_entropy, selection_statistics
from trireid.types import Selection

ALL = torch.ones(1, 3, dtype=torch.bool)


def masks(*rows):
    return torch.tensor([[[char == "x" for char in row] for row in rows]])


def test_overlap_is_both_of_either():
    overlap = kept_overlap(masks("xx..", "x.x.", "..xx"), ALL)
    assert {pair: float(value) for pair, value in overlap.items()} == pytest.approx(
        {("rgb", "nir"): 1 / 3, ("rgb", "tir"): 0.0, ("nir", "tir"): 1 / 3}
    )


def test_entropy_is_one_for_equal_scores_and_zero_for_a_single_peak():
    scores = torch.tensor([[[2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 5.0, 0.0], [1.0, 1.0, 0.0, 0.0]]])
    entropy = score_entropy(scores, ALL)[0]
    assert entropy.tolist() == pytest.approx([1.0, 0.0, math.log(2) / math.log(4)])


def test_entropy_knows_neither_unit_nor_zero_and_leaves_out_what_was_dropped_before():
    scores = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(0))
    present = torch.ones(2, 3, dtype=torch.bool)
    entropy = score_entropy(scores, present)
    assert torch.allclose(entropy, score_entropy(7 * scores - 3, present), atol=1e-5)
    wider = torch.cat([scores, torch.full((2, 3, 4), -torch.inf)], dim=-1)
    assert torch.allclose(entropy, score_entropy(wider, present))


def test_absent_modalities_are_in_no_mean():
    mask = masks("xx..", "....", "x...")
    present = torch.tensor([[True, False, True]])
    scores = torch.zeros(1, 3, 4)
    found = selection_statistics(Selection(torch.zeros(1, 3, 2, dtype=torch.long), scores, mask, (2, 2)), present)
    assert found["kept"] == pytest.approx(3 / 8)
    assert found["overlap/rgb-tir"] == pytest.approx(0.5)
    assert math.isnan(found["overlap/rgb-nir"])
    assert math.isnan(found["entropy/nir"])
    assert found["entropy/rgb"] == 1.0
