from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import trireid.evaluation.metrics as metrics_module
from trireid.errors import InputError
from trireid.evaluation.evaluate import ranking_distance
from trireid.evaluation.expansion import average_query_expansion
from trireid.evaluation.metrics import pairwise_distance, rank_metrics, ranked_list
from trireid.evaluation.rerank import k_reciprocal
from trireid.evaluation.search import search
from trireid.types import Labels, Protocol

from reference_ranking import literal_metrics, ranked_columns

EXCLUDES = ("camera", "scene", "cross_camera", "none")


def make_labels(generator, count, *, first_item=0, identities=6, unknown=True):
    low = -1 if unknown else 0

    def draw(high):
        return torch.randint(low, high, (count,), generator=generator)

    return Labels(draw(identities), draw(3), draw(2), torch.arange(first_item, first_item + count))


def plain(labels):
    return {name: value.tolist() for name, value in vars(labels).items()}


def tied_distance(generator, num_query, num_gallery):
    return torch.randint(0, 5, (num_query, num_gallery), generator=generator).float() / 4


@pytest.mark.parametrize("exclude", EXCLUDES)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_literal_definition_with_ties_and_unknowns(exclude, seed):
    generator = torch.Generator().manual_seed(seed)
    query, gallery = make_labels(generator, 17), make_labels(generator, 29, first_item=9)  # items 9..16 are shared
    distance = tied_distance(generator, 17, 29)
    expected = literal_metrics(distance.tolist(), plain(query), plain(gallery), exclude, max_rank=50)
    found = rank_metrics(distance, query, gallery, Protocol("p", exclude), chunk_size=5)
    assert found.mAP == pytest.approx(expected["mAP"], abs=1e-6)
    assert found.mINP == pytest.approx(expected["mINP"], abs=1e-6)
    np.testing.assert_allclose(found.cmc.numpy(), expected["cmc"], atol=1e-6)
    assert found.num_unmatched == expected["num_unmatched"] > 0  # identity -1 matches nothing
    assert found.num_queries == 17
    for value, literal in zip(found.average_precision.tolist(), expected["average_precision"], strict=True):
        assert math.isnan(value) if literal is None else value == pytest.approx(literal, abs=1e-6)


@pytest.mark.parametrize("exclude", EXCLUDES)
def test_query_is_gallery_equals_the_literal_definition(exclude):
    generator = torch.Generator().manual_seed(7)
    labels = make_labels(generator, 24, unknown=False)
    features = torch.randn(24, 4, generator=generator)
    distance = pairwise_distance(features, features)
    expected = literal_metrics(distance.tolist(), plain(labels), plain(labels), exclude, max_rank=10)
    found = rank_metrics(distance, labels, labels, Protocol("p", exclude), max_rank=10)
    assert found.mAP == pytest.approx(expected["mAP"], abs=1e-6)
    assert found.mINP == pytest.approx(expected["mINP"], abs=1e-6)
    np.testing.assert_allclose(found.cmc.numpy(), expected["cmc"], atol=1e-6)


def codes(*values):
    return torch.tensor(values)


def labels_of(identity, camera, first_item=0):
    count = len(identity)
    return Labels(codes(*identity), codes(*camera), codes(*[-1] * count), torch.arange(first_item, first_item + count))


def test_closed_form_one_query():
    # Visible list: wrong, right, wrong, right (the nearest item shares identity and camera and is hidden).
    query, gallery = labels_of([5], [0]), labels_of([5, 1, 5, 2, 5], [0, 0, 1, 1, 2], first_item=1)
    distance = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4]])
    found = rank_metrics(distance, query, gallery, Protocol("p", "camera"), ranks=(1, 2, 3))
    assert found.mAP == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found.mINP == pytest.approx(2 / 4)
    assert found.as_dict() == pytest.approx({"mAP": 0.5, "mINP": 0.5, "rank1": 0.0, "rank2": 1.0, "rank3": 1.0})


def test_one_query_one_gallery_item():
    found = rank_metrics(torch.zeros(1, 1), labels_of([3], [0]), labels_of([3], [1], 1), Protocol("p"))
    assert found.as_dict() == {"mAP": 1.0, "mINP": 1.0, "rank1": 1.0, "rank5": 1.0, "rank10": 1.0}


def test_unknown_camera_equals_no_camera_and_item_never_matches_itself():
    labels = labels_of([1, 1], [-1, -1])
    found = rank_metrics(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), labels, labels, Protocol("p", "camera"))
    assert found.mAP == 1.0  # the other item of unknown camera counts; the item itself is not there


def test_cross_camera_hides_the_distractors_of_the_own_camera():
    query, gallery = labels_of([5], [0]), labels_of([1, 2, 5, 3, 5], [0, 1, 1, -1, 0], first_item=1)
    distance = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4]])
    assert rank_metrics(distance, query, gallery, Protocol("p", "camera")).mAP == pytest.approx(1 / 3)
    assert rank_metrics(distance, query, gallery, Protocol("p", "cross_camera")).mAP == pytest.approx(1 / 2)


def test_ties_follow_the_order_of_the_gallery():
    query = labels_of([1], [0])
    distance = torch.zeros(1, 2)
    first = rank_metrics(distance, query, labels_of([1, 2], [1, 1], 1), Protocol("p"))
    second = rank_metrics(distance, query, labels_of([2, 1], [1, 1], 1), Protocol("p"))
    assert (first.rank1, second.rank1) == (1.0, 0.0)


def test_infinite_distance_of_a_match_is_last():
    query, gallery = labels_of([1], [0]), labels_of([1, 2], [1, 1], 1)
    assert rank_metrics(torch.tensor([[math.inf, 3.0]]), query, gallery, Protocol("p")).mAP == 0.5


@pytest.mark.parametrize("chunk_size", [1, 3, 1000])
def test_chunk_size_changes_memory_not_metrics(chunk_size, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query, gallery = make_labels(generator, 11), make_labels(generator, 13, first_item=11)
    distance = tied_distance(generator, 11, 13)
    whole = rank_metrics(distance, query, gallery, Protocol("p"))
    sizes = []
    statistics = metrics_module._query_statistics

    def spy(part, *masks):
        sizes.append(len(part))
        return statistics(part, *masks)

    monkeypatch.setattr(metrics_module, "_query_statistics", spy)
    chunked = rank_metrics(distance, query, gallery, Protocol("p"), chunk_size=chunk_size)
    assert chunked.as_dict() == whole.as_dict()
    assert max(sizes) <= chunk_size
    assert sum(sizes) == 11


@pytest.mark.parametrize("exclude", EXCLUDES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_infinite_negative_and_close_distances_of_every_type(exclude, dtype):
    generator = torch.Generator().manual_seed(5)
    query, gallery = make_labels(generator, 15), make_labels(generator, 40, first_item=7)
    values = torch.tensor([0.0, -0.0, 1.0, 1.0 + 1e-10, -2.0, math.inf, -math.inf], dtype=torch.float64).to(dtype)
    distance = values[torch.randint(0, len(values), (15, 40), generator=generator)]
    expected = literal_metrics(distance.tolist(), plain(query), plain(gallery), exclude, max_rank=50)
    found = rank_metrics(distance, query, gallery, Protocol("p", exclude), chunk_size=4)
    assert (found.mAP, found.mINP) == pytest.approx((expected["mAP"], expected["mINP"]), abs=1e-6)
    np.testing.assert_allclose(found.cmc.numpy(), expected["cmc"], atol=1e-6)


def test_an_unknown_item_is_no_other_unknown_item():
    query = labels_of([1], [0], first_item=-1)
    gallery = Labels(codes(2, 1), codes(1, 1), codes(-1, -1), codes(-1, -1))
    assert rank_metrics(torch.tensor([[0.0, 1.0]]), query, gallery, Protocol("p")).mAP == 0.5


def test_hidden_copies_of_the_item_count_neither_as_relatives_nor_as_strangers():
    # The gallery holds the query's own item three times: under its identity, another one and none.
    query = labels_of([1], [0], first_item=9)
    gallery = Labels(codes(1, 2, -1, 1, 2), codes(1, 1, 1, 1, 1), codes(*[-1] * 5), codes(9, 9, 9, 3, 4))
    distance = torch.tensor([[0.0, 0.1, 0.2, 0.4, 0.3]])
    for exclude in EXCLUDES:
        assert rank_metrics(distance, query, gallery, Protocol("p", exclude)).mAP == 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("exclude", EXCLUDES)
def test_a_device_gives_the_same_metrics(exclude):
    generator = torch.Generator().manual_seed(5)
    query, gallery = make_labels(generator, 15), make_labels(generator, 400, first_item=7)
    distance = tied_distance(generator, 15, 400)
    expected = rank_metrics(distance, query, gallery, Protocol("p", exclude))
    found = rank_metrics(distance.cuda(), query, gallery, Protocol("p", exclude))
    assert found.as_dict() == pytest.approx(expected.as_dict(), abs=1e-12)
    listed = ranked_list(distance.cuda(), query, gallery, Protocol("p", exclude))
    assert torch.equal(listed.index.cpu(), ranked_list(distance, query, gallery, Protocol("p", exclude)).index)


def test_no_valid_match_at_all_is_an_error():
    with pytest.raises(InputError, match="none of the 1 queries has a valid match"):
        rank_metrics(torch.zeros(1, 1), labels_of([1], [0]), labels_of([1], [0], 1), Protocol("p", "camera"))
    with pytest.raises(InputError, match="none of the 2 queries has a valid match"):
        rank_metrics(torch.zeros(2, 1), labels_of([1, -1], [0, 0]), labels_of([2], [1], 2), Protocol("p", "none"))


def test_nan_distance_is_an_error_that_names_the_row():
    distance = torch.tensor([[0.0], [math.nan]])
    with pytest.raises(InputError, match=r"1 distances are NaN .*row 1"):
        rank_metrics(distance, labels_of([1, 1], [0, 0]), labels_of([1], [1], 2), Protocol("p"))


def test_wrong_shape_and_rank_are_errors():
    with pytest.raises(InputError, match=r"need \(1, 1\)"):
        rank_metrics(torch.zeros(1, 2), labels_of([1], [0]), labels_of([1], [1], 1), Protocol("p"))
    found = rank_metrics(torch.zeros(1, 1), labels_of([1], [0]), labels_of([1], [1], 1), Protocol("p"))
    with pytest.raises(InputError, match="rank 99"):
        found.rank(99)


@pytest.mark.parametrize("exclude", EXCLUDES)
def test_ranked_list_is_the_literal_list(exclude):
    generator = torch.Generator().manual_seed(3)
    query, gallery = make_labels(generator, 9), make_labels(generator, 12, first_item=4)
    distance = tied_distance(generator, 9, 12)
    distance[0, 3] = math.inf  # a visible item at infinity stays in front of the excluded ones
    found = ranked_list(distance, query, gallery, Protocol("p", exclude), top=12)
    for row in range(9):
        columns = ranked_columns(distance.tolist(), plain(query), plain(gallery), row, exclude)
        assert found.index[row].tolist() == columns + [-1] * (12 - len(columns))
        right = [query.identity[row] == gallery.identity[c] != -1 for c in columns]
        assert found.matches[row].tolist() == [bool(r) for r in right] + [False] * (12 - len(columns))


def test_pairwise_distance_equals_differences():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(7, 5, generator=generator), torch.randn(9, 5, generator=generator)
    expected = (first.double()[:, None] - second.double()).square().sum(-1).sqrt()
    found = pairwise_distance(first, second, chunk_size=2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


def test_pairwise_distance_of_equal_features_is_zero():
    features = torch.randn(6, 1024, generator=torch.Generator().manual_seed(0)) * 1e3
    repeated = features[[0, 0, 1, 1, 2, 2]]
    distance = pairwise_distance(features, features)
    assert torch.equal(distance.diagonal(), torch.zeros(6))
    assert pairwise_distance(repeated, repeated)[0, 1] == 0.0
    assert torch.equal(pairwise_distance(repeated[:2], repeated[:2]), torch.zeros(2, 2))


def test_pairwise_distance_keeps_small_differences_of_nearly_equal_features():
    generator = torch.Generator().manual_seed(0)
    features = torch.ones(1, 64) + 1e-5 * torch.randn(12, 64, generator=generator)
    expected = (features.double()[:, None] - features.double()).square().sum(-1).sqrt()
    torch.testing.assert_close(pairwise_distance(features, features).double(), expected, atol=0, rtol=1e-4)


def test_pairwise_distance_refuses_unlike_widths():
    with pytest.raises(InputError, match=r"\(2, 3\) and \(2, 4\)"):
        pairwise_distance(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.6])
@pytest.mark.parametrize("huge", [1e8, 1e15, 1e37])
def test_features_far_away_change_no_distance_of_the_others(huge, share):
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(6, 16, generator=generator), torch.randn(100, 16, generator=generator)
    gallery[1] = gallery[0]
    alone = pairwise_distance(query, gallery)
    others = torch.arange(100) >= max(1, int(100 * share))
    far, far_query = gallery.clone(), query.clone()
    far[~others, 3] = huge
    far_query[0, 3] = -huge
    found = pairwise_distance(far_query, far)
    exact = (query.double()[1:, None] - gallery.double()).square().sum(-1).sqrt()
    torch.testing.assert_close(found[1:, others], exact[:, others].float(), atol=0, rtol=2e-7)
    torch.testing.assert_close(alone[1:], exact.float(), atol=0, rtol=2e-7)
    listed = search(far_query, gallery, normalise=False, top=4, chunk_size=7)
    assert torch.equal(listed.index[1:], search(query, gallery, normalise=False, top=4).index[1:])
    among = k_reciprocal(gallery, None, lambda_value=1.0)  # the original distances by the largest of each row
    assert torch.equal(among[0, :2], torch.zeros(2))


@pytest.mark.parametrize(
    ("value", "message"),
    [(torch.nan, "NaN or infinite"), (-torch.inf, "NaN"), (3e38, "length of 3.0e[+]38; up to 1e[+]38")],
)
def test_features_whose_distances_are_no_numbers_are_named(value, message):
    good, bad = torch.ones(3, 4), torch.ones(5, 4)
    bad[3, 1] = value
    for rank in (pairwise_distance, search, k_reciprocal, average_query_expansion, ranking_distance):
        with pytest.raises(InputError, match=f"feature of item 3 (is|has a) {message}"):
            rank(good, bad)
        with pytest.raises(InputError, match=f"feature of item 3 (is|has a) {message}"):
            rank(bad, good)


@pytest.mark.parametrize("scale", [1e-42, 1e-25, 1e25, 1e37])
def test_the_length_of_a_feature_does_not_change_its_normalised_distance(scale):
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(6, 16, generator=generator), torch.randn(30, 16, generator=generator)
    expected, scaled = ranking_distance(query, gallery), gallery * scale
    tolerance = 1e-2 if scale == 1e-42 else 1e-6  # so few digits are left of a number so small
    torch.testing.assert_close(ranking_distance(query, scaled), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(
        search(query, scaled, top=30).distance, expected.sort(dim=1).values, atol=tolerance, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_a_list_by_whole_numbers_is_that_by_floats(dtype):
    generator = torch.Generator().manual_seed(0)
    query, gallery = make_labels(generator, 4, first_item=30), make_labels(generator, 9)
    distance = torch.randint(0, 9, (4, 9), generator=generator).to(dtype)
    found, expected = (ranked_list(each, query, gallery, Protocol("p")) for each in (distance, distance.double()))
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.distance, expected.distance)
    with pytest.raises(InputError, match="allowed are real numbers"):
        ranked_list(distance.to(torch.complex64), query, gallery, Protocol("p"))
