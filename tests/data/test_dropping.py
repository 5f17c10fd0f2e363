"""Modality dropout: every proper subset as often as the others, never nothing, by the item's seed alone."""

import pytest
import torch

from trireid.data.dropping import drop_modalities
from trireid.data.randomness import uniform_draws
from trireid.errors import InputError
from trireid.types import modality_subsets

COUNT = 20000


def shares(present):
    code = present.long() @ torch.tensor([1, 2, 4])
    return {int(value): float((code == value).float().mean()) for value in code.unique()}


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_proper_subset_of_what_an_item_has_is_equally_likely(probability):
    for has in modality_subsets():
        present = torch.zeros(COUNT, 3, dtype=torch.bool)
        present[:, list(has)] = True
        found = shares(drop_modalities(present, torch.arange(COUNT), probability))
        smaller = [sum(1 << m for m in subset) for subset in modality_subsets() if set(subset) < set(has)]
        kept = sum(1 << m for m in has)
        expected = {code: probability / len(smaller) for code in smaller} if smaller else {}
        expected[kept] = 1.0 - probability if smaller else 1.0
        for code in set(found) | set(expected):
            assert found.get(code, 0.0) == pytest.approx(expected.get(code, 0.0), abs=0.015), (has, code)


def test_an_item_depends_on_its_seed_and_on_nothing_else():
    seed = torch.randint(2**62, (64,), generator=torch.Generator().manual_seed(0))
    present = torch.ones(64, 3, dtype=torch.bool)
    present[::5, 1] = False
    whole = drop_modalities(present, seed, 0.7)
    assert torch.equal(torch.cat([drop_modalities(present[i:][:3], seed[i:][:3], 0.7) for i in range(0, 64, 3)]), whole)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drop_modalities(present[order], seed[order], 0.7), whole[order])
    assert not (whole & ~present).any()


def test_the_draws_are_not_those_of_augmentation():
    seed = torch.arange(COUNT)
    flipped = uniform_draws(seed, 1)[:, 0] < 0.5
    dropped = ~drop_modalities(torch.ones(COUNT, 3, dtype=torch.bool), seed, 0.5).all(dim=1)
    assert float((flipped == dropped).float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_a_probability_out_of_range_is_named(probability):
    with pytest.raises(InputError, match=r"modality dropout is .*; it must lie in \[0, 1\]"):
        drop_modalities(torch.ones(2, 3, dtype=torch.bool), torch.arange(2), probability)
