from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import torch

from trireid.data.sampler import IdentitySampler, RandomBatchSampler, UniformIdentitySampler, count_batches
from trireid.errors import ConfigError, DataError

COUNTS = {"a": 9, "b": 2, "c": 4, "d": 7, "e": 1, "f": 30, "g": 4}
IDENTITIES = [name for name, number in COUNTS.items() for _ in range(number)]


def make(seed: int = 3, *, batch_size: int = 12, num_instances: int = 4) -> IdentitySampler:
    return IdentitySampler(IDENTITIES, batch_size=batch_size, num_instances=num_instances, seed=seed)


def slow_count(num_groups: list[int], num_identities: int) -> int:
    """How many batches of different identities a greedy draw of the fullest ones gives, which is the optimum."""
    left, batches = list(num_groups), 0
    while sum(number > 0 for number in left) >= num_identities:
        for index in sorted(range(len(left)), key=lambda index: -left[index])[:num_identities]:
            left[index] -= 1
        batches += 1
    return batches


@pytest.mark.parametrize(
    "groups", [[2, 1, 1, 1, 1, 7, 1], [1, 1, 1], [5, 5, 5, 5], [9, 1, 1], [3, 3, 2, 2, 1], [40, 30, 2, 1]]
)
def test_number_of_batches_is_the_largest_possible(groups: list[int]) -> None:
    for num_identities in range(1, len(groups) + 1):
        assert count_batches(groups, num_identities) == slow_count(groups, num_identities)


@pytest.mark.parametrize("epoch", range(5))
def test_batches_hold_p_identities_times_k_items(epoch: int) -> None:
    sampler = make()
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) == slow_count([2, 1, 1, 1, 1, 7, 1], 3)
    for batch in batches:
        counts = Counter(IDENTITIES[index] for index, _ in batch)
        assert len(counts) == 3
        assert set(counts.values()) == {4}


def test_items_repeat_only_where_an_identity_has_too_few() -> None:
    used = Counter(index for batch in make() for index, _ in batch)
    for name in COUNTS:
        members = [index for index, identity in enumerate(IDENTITIES) if identity == name]
        drawn = [used[index] for index in members if used[index]]
        if COUNTS[name] >= 4:
            assert set(drawn) <= {1}
        elif drawn:
            assert len(drawn) == COUNTS[name]  # all of its images, then some again
            assert sum(drawn) == 4


def test_same_seed_same_batches_other_epoch_or_seed_other_batches() -> None:
    first = list(make())
    assert list(make()) == first
    sampler = make()
    assert list(sampler) == list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(make(seed=4)) != first


def test_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = list(make())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert list(make()) == first


def test_seeds_of_the_items_differ() -> None:
    seeds = [seed for batch in make() for _, seed in batch]
    assert len(set(seeds)) == len(seeds)


def test_all_images_are_seen_over_the_epochs_and_all_pairs_meet() -> None:
    identities = [name for name in "abcdef" for _ in range(9)]
    sampler = IdentitySampler(identities, batch_size=8, num_instances=4, seed=0)
    seen: set[int] = set()
    pairs: set[tuple[str, ...]] = set()
    for epoch in range(30):
        sampler.set_epoch(epoch)
        for batch in sampler:
            seen |= {index for index, _ in batch}
            pairs |= set(combinations(sorted({identities[index] for index, _ in batch}), 2))
    assert seen == set(range(54))
    assert len(pairs) == 15


def test_as_many_identities_as_a_batch_needs() -> None:
    sampler = IdentitySampler([0, 0, 1], batch_size=4, num_instances=2, seed=0)
    assert [sorted({index for index, _ in batch}) for batch in sampler] == [[0, 1, 2]]


def test_order_of_the_records_decides_nothing_but_the_positions() -> None:
    reverse = IdentitySampler(IDENTITIES[::-1], batch_size=12, num_instances=4, seed=3)
    ours = [sorted({IDENTITIES[index] for index, _ in batch}) for batch in make()]
    assert [sorted({IDENTITIES[::-1][index] for index, _ in batch}) for batch in reverse] == ours


def test_impossible_batches_name_the_settings() -> None:
    with pytest.raises(ConfigError, match=r"data\.batch_size 10 is not a multiple of data\.num_instances 4"):
        make(batch_size=10)
    with pytest.raises(DataError, match=r"data\.batch_size 64 .* needs 16 identities in a batch, but .* only 7"):
        make(batch_size=64)


def test_random_sampler() -> None:
    sampler = RandomBatchSampler(10, batch_size=4, seed=1)
    batches = list(sampler)
    assert [len(batch) for batch in batches] == [4, 4]
    assert len(sampler) == 2
    assert len({index for batch in batches for index, _ in batch}) == 8
    assert list(sampler) == batches
    sampler.set_epoch(1)
    assert list(sampler) != batches
    with pytest.raises(ConfigError, match=r"data\.batch_size 11 is more than the 10 training triplets"):
        RandomBatchSampler(10, batch_size=11, seed=1)


def make_uniform(seed: int = 3, *, epoch: int = 0, identities: list[str] = IDENTITIES) -> UniformIdentitySampler:
    sampler = UniformIdentitySampler(identities, batch_size=12, num_instances=4, seed=seed)
    sampler.set_epoch(epoch)
    return sampler


@pytest.mark.parametrize("epoch", range(5))
def test_uniform_batches_hold_p_identities_times_k_items_and_are_counted(epoch: int) -> None:
    sampler = make_uniform(epoch=epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) >= 1
    for batch in batches:
        counts = Counter(IDENTITIES[index] for index, _ in batch)
        assert len(counts) == 3
        assert set(counts.values()) == {4}
    left = Counter({name: max(1, number // 4) for name, number in COUNTS.items()})
    for batch in batches:
        left -= Counter({IDENTITIES[index] for index, _ in batch})
    assert len(+left) < 3  # it ends only where no batch can be made any more


def test_uniform_draws_leave_the_largest_identities_over() -> None:
    identities = ["large"] * 40 + [name for name in "abcdefgh" for _ in range(4)]
    uniform = [len(list(make_uniform(epoch=epoch, identities=identities))) for epoch in range(20)]
    ours = IdentitySampler(identities, batch_size=12, num_instances=4, seed=3)
    assert len(ours) == 4
    assert min(uniform) < 4
    assert max(uniform) <= 4
    assert len(set(uniform)) > 1  # the number of batches differs by epoch


def test_uniform_draws_take_every_identity_equally_often_while_all_are_left() -> None:
    identities = ["large"] * 400 + [name for name in "abcd" for _ in range(40)]
    firsts: Counter[str] = Counter()
    for epoch in range(200):
        firsts.update({identities[index] for index, _ in next(iter(make_uniform(epoch=epoch, identities=identities)))})
    assert all(90 <= number <= 150 for number in firsts.values())  # 120 expected; ours draws `large` every time


def test_a_small_identity_is_filled_by_drawing_again_so_that_images_may_be_missing() -> None:
    identities = [name for name in "abc" for _ in range(3)]
    seen = [
        len({index for index, _ in batch if identities[index] == "a"})
        for epoch in range(40)
        for batch in make_uniform(epoch=epoch, identities=identities)
    ]
    assert len(seen) == 40
    assert min(seen) < 3  # 4 draws among 3 images; ours shows all 3
    assert max(seen) == 3


def test_uniform_batches_repeat_by_seed_and_epoch() -> None:
    first = list(make_uniform())
    sampler = make_uniform()
    assert list(sampler) == list(sampler) == first
    assert list(make_uniform(epoch=1)) != first
    assert list(make_uniform(seed=4)) != first
