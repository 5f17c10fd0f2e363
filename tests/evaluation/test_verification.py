import pytest
import sklearn.metrics  # noqa: F401 - imported when first used; its seconds belong to no test
import torch

from trireid.errors import InputError
from trireid.evaluation.verification import (
    equal_error,
    false_non_match_rates,
    pair_distances,
    share_named,
    supported_rates,
)
from trireid.types import Labels, Protocol


def literal_error(same, different):
    """Try every distance as threshold: the smallest difference between the two errors."""
    best = None
    for threshold in [-1.0, *sorted({*same, *different})]:
        refused = sum(value > threshold for value in same) / len(same)
        accepted = sum(value <= threshold for value in different) / len(different)
        if best is None or abs(refused - accepted) < best[0]:
            best = abs(refused - accepted), (refused + accepted) / 2, threshold
    return best


def test_parted_distances_have_no_error_and_a_threshold_between_them():
    equal = equal_error(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6]))
    assert equal.rate == 0
    assert 0.3 <= equal.threshold < 0.5
    worst = equal_error(torch.tensor([1.0]), torch.tensor([0.0]))
    assert worst.rate == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_rate_is_that_of_the_best_threshold(seed):
    generator = torch.Generator().manual_seed(seed)
    same, different = torch.rand(23, generator=generator), 0.3 + torch.rand(41, generator=generator)
    gap, rate, _ = literal_error(same.tolist(), different.tolist())
    equal = equal_error(same, different)
    refused, accepted = (same > equal.threshold).double().mean(), (different <= equal.threshold).double().mean()
    assert abs(refused - accepted) == pytest.approx(gap, abs=1e-9)
    assert equal.rate == pytest.approx(float(refused + accepted) / 2, abs=1e-9)
    assert equal.rate == pytest.approx(rate, abs=gap + 1e-9)


def test_many_pairs_are_thinned_out_evenly():
    generator = torch.Generator().manual_seed(0)
    same, different = torch.rand(4000, generator=generator), 0.5 + torch.rand(5000, generator=generator)
    assert equal_error(same, different, most_pairs=1000).rate == pytest.approx(
        equal_error(same, different).rate, abs=0.03
    )


def test_pairs_are_those_that_the_ranking_sees():
    labels = Labels(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]), torch.full((4,), -1), torch.arange(4))
    distance = torch.arange(16.0).view(4, 4)
    same, different = pair_distances(distance, labels, labels, Protocol("p", "camera"))
    assert same.tolist() == [2, 6, 8, 9]  # not the item itself, not the same camera
    assert different.tolist() == [3, 7, 11, 12, 13, 14]


def test_one_kind_alone_is_an_error():
    with pytest.raises(InputError, match="given 2 and 0"):
        equal_error(torch.tensor([0.1, 0.2]), torch.tensor([]))


def test_the_threshold_of_pairs_gives_wrong_names_in_a_search():
    # Two queries of identity 0 and 1; of ten others, one lies nearer to the first query than the threshold.
    identity, unknown = torch.arange(12), torch.full((12,), -1)
    gallery = Labels(identity, unknown, unknown, 100 + identity)
    query = Labels(identity[:2], unknown[:2], unknown[:2], torch.arange(2))
    distance = torch.full((2, 12), 1.0)
    distance[0, 0] = distance[1, 1] = 0.3
    distance[0, 7] = 0.2
    protocol = Protocol("p", "none")
    equal = equal_error(*pair_distances(distance, query, gallery, protocol))
    assert equal.rate < 0.05
    assert share_named(distance, query, gallery, protocol, equal.threshold) == 0.5
    assert share_named(distance, query, gallery, protocol, 0.1) == 0.0
    assert share_named(distance, query, gallery, protocol, 1.0) == 1.0


@pytest.mark.parametrize("exclude", ["camera", "cross_camera"])
def test_false_non_match_rates_are_those_of_double_loops(exclude):
    generator = torch.Generator().manual_seed(0)
    query = Labels(*(torch.randint(size, (90,), generator=generator) for size in (30, 3, 1)), torch.arange(90))
    gallery = Labels(*(torch.randint(size, (200,), generator=generator) for size in (30, 3, 1)), torch.arange(200) + 60)
    distance = torch.randint(400, (90, 200), generator=generator) / 200  # with ties
    distance -= 0.8 * (query.identity[:, None] == gallery.identity)
    same, different = [], []
    sides = [torch.stack(list(vars(side).values()), dim=1).tolist() for side in (query, gallery)]
    for one, row in zip(sides[0], distance.tolist(), strict=True):
        for other, value in zip(sides[1], row, strict=True):
            is_same, one_camera = one[0] == other[0], one[1] == other[1]
            if one[3] != other[3] and not (one_camera and (is_same or exclude == "cross_camera")):
                (same if is_same else different).append(value)
    found = false_non_match_rates(distance, query, gallery, Protocol("p", exclude), {"a": 0.1, "b": 0.003})
    for name, rate in (("a", 0.1), ("b", 0.003)):
        accepted = [t for t in sorted({*different, 9.0}) if sum(d < t for d in different) <= rate * len(different)]
        assert found[name] == pytest.approx(sum(s >= max(accepted) for s in same) / len(same))
    assert 0.0 < found["a"] < found["b"] < 1.0
    assert false_non_match_rates(distance, query, gallery, Protocol("p"), {}) == {}


def test_rates_are_reported_where_the_identities_suffice():
    def labels(count):
        return Labels(torch.arange(count), *(torch.zeros(count, dtype=torch.int64) for _ in range(3)))

    assert supported_rates(labels(246), labels(246))[0] == {"fnmr_at_fmr_1e-2": 0.01, "fnmr_at_fmr_1e-3": 0.001}
    supported, verification = supported_rates(labels(79), labels(75))
    assert (supported, verification.num_identity_pairs) == ({"fnmr_at_fmr_1e-2": 0.01}, 75 * 74 // 2 + 4 * 75)
    assert verification.note.endswith("79 have 3075 pairs; FMR 0.1 % needs 246")
    assert "FMR 1 % needs 78, FMR 0.1 % needs 246" in supported_rates(labels(30), labels(30))[1].note
