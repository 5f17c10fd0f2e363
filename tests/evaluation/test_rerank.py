from __future__ import annotations

import numpy as np
import pytest
import torch

import trireid.evaluation.nearest as order_module
import trireid.evaluation.reciprocal as encoding_module
import trireid.evaluation.rerank as rerank_module
from trireid.errors import InputError
from trireid.evaluation.metrics import pairwise_distance
from trireid.evaluation.rerank import k_reciprocal, k_reciprocal_distance

from reference_ranking import literal_encoding, literal_k_reciprocal


def clustered(seed, num_query, num_gallery, spread=0.6):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 6, generator=generator)
    which = torch.randint(0, 5, (num_query + num_gallery,), generator=generator)
    features = centres[which] + spread * torch.randn(num_query + num_gallery, 6, generator=generator)
    return features[:num_query], features[num_query:]


@pytest.mark.parametrize(
    ("k1", "k2", "lambda_value"), [(6, 3, 0.3), (5, 1, 0.0), (7, 2, 0.8), (3, 6, 0.3), (1, 1, 0.5)]
)
def test_equals_the_literal_definition(k1, k2, lambda_value):
    query, gallery = clustered(k1, 6, 17)
    pairs = [pairwise_distance(a, b) for a, b in ((query, gallery), (query, query), (gallery, gallery))]
    expected = literal_k_reciprocal(*[p.numpy() for p in pairs], k1, k2, lambda_value)
    found = k_reciprocal_distance(*pairs, k1=k1, k2=k2, lambda_value=lambda_value)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    same = k_reciprocal(query, gallery, k1=k1, k2=k2, lambda_value=lambda_value)
    torch.testing.assert_close(same, found)


@pytest.mark.parametrize("chunk_size", [1, 3, 1000])
def test_chunk_size_changes_memory_not_distances(chunk_size, monkeypatch):
    query, gallery = clustered(3, 9, 25)
    equal = gallery[:5].repeat(12, 1)  # more equal images than neighbours: each must still head its own list
    cases = ((query, gallery), (torch.cat([query, equal]), None))
    expected = [k_reciprocal(*case, k1=6, k2=3) for case in cases]
    monkeypatch.setattr(encoding_module, "WORK", 60 * chunk_size)
    monkeypatch.setattr(order_module, "MOST_COLUMNS", 2 * chunk_size + 1)  # rows cross a border
    for case, distance in zip(cases, expected, strict=True):
        assert torch.equal(k_reciprocal(*case, k1=6, k2=3, chunk_size=chunk_size), distance)


def test_ties_keep_the_order_query_gallery():
    # Points of a grid have many equal distances.
    points = torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0))
    features = points[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    pairs = [
        pairwise_distance(a, b) for a, b in ((features[:6], features[6:]), (features[:6],) * 2, (features[6:],) * 2)
    ]
    expected = literal_k_reciprocal(*[p.numpy() for p in pairs], 4, 2, 0.3)
    np.testing.assert_allclose(k_reciprocal_distance(*pairs, k1=4, k2=2).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(k_reciprocal(features[:6], features[6:], k1=4, k2=2).numpy(), expected, atol=1e-5)


def test_distances_of_any_layout_and_type():
    query, gallery = clustered(3, 4, 15)
    pairs = [pairwise_distance(a, b) for a, b in ((query, gallery), (query, query), (gallery, gallery))]
    expected = k_reciprocal_distance(*pairs, k1=5, k2=2)
    turned = [pair.double().T.contiguous().T for pair in pairs]
    assert torch.equal(k_reciprocal_distance(*turned, k1=5, k2=2), expected)


def test_more_items_than_blocks_equal_the_literal_definition():
    query, gallery = clustered(8, 3, 130)
    pairs = [pairwise_distance(a, b) for a, b in ((query, gallery), (query, query), (gallery, gallery))]
    full = torch.cat([torch.cat([pairs[1], pairs[0]], dim=1), torch.cat([pairs[0].T, pairs[2]], dim=1)])
    count = 3  # fewer than the 4 blocks of 133 items
    expected = full.fill_diagonal_(-1.0).sort(dim=1, stable=True).indices[:, :count]
    distances = rerank_module._OfMatrices(*pairs)
    found, largest = encoding_module.neighbourhoods(distances, count, chunk_size=10)
    assert torch.equal(found, expected)
    assert torch.equal(largest, full.amax(dim=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_gives_the_same_distances_each_time():
    query, gallery = clustered(3, 9, 600)
    expected = k_reciprocal(query, gallery)
    found = k_reciprocal(query.cuda(), gallery.cuda())
    torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=0)
    assert torch.equal(k_reciprocal(query.cuda(), gallery.cuda()), found)


def test_expansion_is_exercised():
    # The literal check above means nothing if no set ever takes in another one.
    query, gallery = clustered(6, 6, 17)
    features = torch.cat([query, gallery])
    full = pairwise_distance(features, features).double().numpy() ** 2
    mutual = literal_encoding(full, 6, 1)
    nearest = np.argsort(full, axis=1, kind="stable")[:, :7]
    outside = [set(np.flatnonzero(mutual[i])) - set(nearest[i]) for i in range(len(full))]
    assert any(outside)


def test_query_is_gallery_takes_each_item_once():
    _, gallery = clustered(0, 1, 20)
    full = pairwise_distance(gallery, gallery).double().numpy() ** 2
    full /= full.max(axis=1, keepdims=True)
    encoding = literal_encoding(full, 5, 3)
    low = np.minimum(encoding[:, None], encoding).sum(-1)
    high = np.maximum(encoding[:, None], encoding).sum(-1)
    expected = 0.7 * (1 - low / high) + 0.3 * full
    found = k_reciprocal(gallery, None, k1=5, k2=3, lambda_value=0.3)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_published_rank_order_of_a_tight_cluster():
    # Three mutual neighbours and a far outlier: the outlier shares nobody, so its Jaccard distance is 1.
    features = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [9.0, 9.0]])
    found = k_reciprocal(features[:1], features[1:], k1=2, k2=1, lambda_value=0.0)
    assert found[0, 2] == pytest.approx(1.0, abs=1e-6)
    assert (found[0, :2] < 0.1).all()


def test_lambda_one_keeps_the_original_order():
    query, gallery = clustered(1, 4, 12)
    found = k_reciprocal(query, gallery, k1=4, k2=2, lambda_value=1.0)
    assert torch.equal(found.argsort(dim=1), pairwise_distance(query, gallery).argsort(dim=1))


@pytest.mark.parametrize("num_gallery", [1, 2, 5])
def test_gallery_smaller_than_k1(num_gallery):
    query, gallery = clustered(2, 2, num_gallery)
    found = k_reciprocal(query, gallery, k1=20, k2=6)
    assert found.shape == (2, num_gallery)
    assert found.isfinite().all()


def test_many_equal_images_keep_an_encoding():
    found = k_reciprocal(torch.zeros(3, 4), torch.zeros(9, 4), k1=2, k2=1)
    assert found.isfinite().all()


def test_an_item_heads_its_own_list_among_equal_images():
    # The nearest three by position, 0, 1 and 2, do not name item 4: without itself it would have no encoding.
    found = k_reciprocal(torch.zeros(5, 2), None, k1=2, k2=1, lambda_value=0.0)
    assert found.diagonal().tolist() == pytest.approx([0.0] * 5, abs=1e-6)
    assert found[4, 0] == 1.0


def test_mutual_neighbours_tell_two_close_chains_apart():
    # Two long, close chains: the direct distance mixes them at the far end, mutual neighbours do not.
    steps = torch.arange(12.0)
    upper = torch.stack([steps, torch.full_like(steps, 2.2)], dim=1)
    lower = torch.stack([steps, torch.zeros_like(steps)], dim=1)
    gallery = torch.cat([upper, lower])
    plain = pairwise_distance(lower[:1], gallery)
    again = k_reciprocal(lower[:1], gallery, k1=5, k2=3, lambda_value=0.0)
    same_chain, other_chain = slice(13, 17), slice(0, 4)
    assert plain[0, same_chain].max() > plain[0, other_chain].min()
    assert again[0, same_chain].mean() < again[0, other_chain].mean()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k1": 0}, "k1=0"),
        ({"k2": 0}, "k2=0"),
        ({"lambda_value": 1.5}, "lambda 1.5"),
        ({"lambda_value": -0.1}, "lambda"),
        ({"chunk_size": 0}, "chunk_size=0"),
    ],
)
def test_bad_settings_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        k_reciprocal(torch.zeros(2, 3), torch.zeros(2, 3), **settings)


def test_bad_distances_are_errors():
    with pytest.raises(InputError, match=r"\(Q, G\), \(Q, Q\) and \(G, G\)"):
        k_reciprocal_distance(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(3, 3))
    with pytest.raises(InputError, match="NaN or infinite"):
        k_reciprocal(torch.full((2, 3), torch.nan), torch.zeros(2, 3))


@pytest.mark.parametrize(("num_query", "num_gallery"), [(0, 5), (5, 0), (0, 0), (0, None)])
def test_an_empty_side_is_an_error(num_query, num_gallery):
    gallery = None if num_gallery is None else torch.rand(num_gallery, 4)
    with pytest.raises(InputError, match="there must be some of each"):
        k_reciprocal(torch.rand(num_query, 4), gallery)
