"""Distances between items that lack different modalities: the literal definition, and every path that ranks."""

import itertools
import math

import numpy as np
import pytest
import torch

from trireid.data.records import ImageSource, Record
from trireid.errors import InputError
from trireid.evaluation.evaluate import evaluate_features, feature_distance, ranking_distance
from trireid.evaluation.feature_files import load_features, save_features
from trireid.evaluation.features import FeatureSet, joint_blocks
from trireid.evaluation.metrics import ranked_list
from trireid.evaluation.presence import Presence, shared_distance, shared_pair_distance, unrelated_cosine
from trireid.evaluation.ranking import Ranking, Rerank, Side
from trireid.evaluation.rerank import k_reciprocal, k_reciprocal_distance
from trireid.evaluation.search import search
from trireid.types import MODALITY_BLOCKS, Labels, Protocol, filled_blocks, modality_subsets

BLOCKS = {"modalities": MODALITY_BLOCKS, "subsets": modality_subsets(), "both": MODALITY_BLOCKS + modality_subsets()}
WIDTH = 4


def make(count, blocks, *, seed=0, complete=False):
    """Features whose empty blocks hold garbage, which must not be read."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(count, 3, generator=generator) < 0.6
    present[~present.any(dim=1), 1] = True
    if complete:
        present[:] = True
    return torch.randn(count, len(blocks) * WIDTH, generator=generator), present


def literal(first, second, first_present, second_present, blocks, *, unrelated=0.0):
    """The definition, pair by pair, in Python numbers."""
    table = torch.empty(len(first), len(second))
    for (i, one), (j, two) in itertools.product(enumerate(first.tolist()), enumerate(second.tolist())):
        own, other = (set(p.nonzero()[:, 0].tolist()) for p in (first_present[i], second_present[j]))
        shared = [k for k, block in enumerate(blocks) if own & set(block) and other & set(block)]
        a, b = ([x for k in shared for x in row[k * WIDTH : (k + 1) * WIDTH]] for row in (one, two))
        product = sum(x * y for x, y in zip(a, b, strict=True))
        cosine = product / (math.hypot(*a) * math.hypot(*b)) if shared else 0.0
        weight = math.sqrt(len(shared) / len(blocks))
        table[i, j] = math.sqrt(max(0.0, 2.0 - 2.0 * (weight * cosine + (1.0 - weight) * unrelated)))
    return table


@pytest.mark.parametrize("unrelated", [0.0, 0.4])
@pytest.mark.parametrize("name", BLOCKS)
def test_distances_equal_the_definition(name, unrelated):
    blocks = BLOCKS[name]
    first, own = make(13, blocks, seed=1)
    second, other = make(17, blocks, seed=2)
    expected = literal(first, second, own, other, blocks, unrelated=unrelated)
    found = shared_distance(first, second, own, other, blocks, unrelated=unrelated)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    row, column = torch.cartesian_prod(torch.arange(13), torch.arange(17)).unbind(1)
    pairs = shared_pair_distance(first[row], second[column], own[row], other[column], blocks, unrelated=unrelated)
    torch.testing.assert_close(pairs.view(13, 17), expected, atol=1e-6, rtol=1e-6)


def test_what_nothing_is_shared_with_is_as_far_as_the_unrelated():
    features, present = torch.eye(3), torch.eye(3, dtype=torch.bool)
    distance = shared_distance(features, features, present, present, MODALITY_BLOCKS)
    assert torch.equal(distance.diagonal(), torch.full((3,), math.sqrt(2 - 2 * math.sqrt(1 / 3))))
    assert torch.equal(distance[~torch.eye(3, dtype=torch.bool)], torch.full((6,), math.sqrt(2.0)))


def test_more_shared_blocks_of_equal_likeness_are_nearer():
    query = torch.ones(1, 3 * WIDTH)
    present = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    distance = shared_distance(query, query.expand(3, -1), present[2:], present, MODALITY_BLOCKS)[0]
    assert distance.tolist() == sorted(distance.tolist(), reverse=True)
    assert distance[2] == 0.0


@pytest.mark.parametrize("name", BLOCKS)
def test_the_cosine_of_unrelated_items_equals_loops(name):
    blocks = BLOCKS[name]
    features, present = make(11, blocks)
    features = features + 0.7
    filled = filled_blocks(blocks, present)
    scaled = torch.zeros_like(features).double()
    for i, row in enumerate(features.double().unflatten(1, (len(blocks), WIDTH)) * filled[..., None]):
        scaled[i] = (row * math.sqrt(int(filled[i].sum()) / float(row.square().sum()))).flatten()
    products, squares = 0.0, 0.0
    for k in range(len(blocks)):
        rows = scaled[:, k * WIDTH : (k + 1) * WIDTH][filled[:, k]]
        pairs = [float(a @ b) for a, b in itertools.permutations(rows, 2)]
        products += sum(pairs) / len(pairs)
        squares += float(rows.square().sum()) / len(rows)
    assert unrelated_cosine(features, present, blocks) == pytest.approx(products / squares)


def test_the_length_of_an_item_does_not_change_what_is_unrelated():
    features, present = make(40, MODALITY_BLOCKS)
    features = features + 0.7
    expected = unrelated_cosine(features, present, MODALITY_BLOCKS)
    assert expected < 0.6
    assert unrelated_cosine(features * torch.logspace(-20, 30, 40)[:, None], present, MODALITY_BLOCKS) == pytest.approx(
        expected, abs=1e-6
    )


def test_the_cosine_of_unrelated_items_where_it_cannot_be_known():
    features, present = make(5, MODALITY_BLOCKS)
    assert unrelated_cosine(features[:1], present[:1], MODALITY_BLOCKS) == 0.0
    assert unrelated_cosine(torch.zeros_like(features), present, MODALITY_BLOCKS) == 0.0
    apart = torch.tensor([[1.0], [-1.0]]).expand(2, 3 * WIDTH)
    assert unrelated_cosine(apart, torch.ones(2, 3, dtype=torch.bool), MODALITY_BLOCKS) == 0.0
    assert unrelated_cosine(apart[:1].expand(4, -1), torch.ones(4, 3, dtype=torch.bool), MODALITY_BLOCKS) == 1.0


def test_filled_blocks_are_those_that_a_present_modality_went_into():
    present = torch.tensor([[True, False, False], [False, True, True]])
    assert filled_blocks(modality_subsets(), present).tolist() == [
        [True, False, False, True, True, False, True],
        [False, True, True, True, True, True, True],
    ]


@pytest.mark.parametrize("pattern", modality_subsets())
def test_items_that_all_have_the_same_rank_as_before(pattern):
    features, present = make(9, MODALITY_BLOCKS)
    present[:] = False
    present[:, list(pattern)] = True
    features = (features.unflatten(1, (3, -1)) * present[:, :, None]).flatten(1)
    found = ranking_distance(features, None, presence=Presence(MODALITY_BLOCKS, present, present))
    assert torch.equal(found, ranking_distance(features, None))


def test_unnormalised_features_compare_as_they_are():
    features, present = make(9, MODALITY_BLOCKS)
    presence = Presence(MODALITY_BLOCKS, present, present)
    plain = ranking_distance(features, None, normalise=False)
    assert torch.equal(ranking_distance(features, None, normalise=False, presence=presence), plain)
    assert not torch.allclose(ranking_distance(features, None, presence=presence), ranking_distance(features, None))


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_memory_mapped_gallery_gives_the_list_of_the_full_matrix(tmp_path, name):
    blocks = BLOCKS[name]
    query, own = make(9, blocks, seed=1)
    gallery, other = make(120, blocks, seed=2)
    np.save(tmp_path / "gallery.npy", gallery.numpy())
    stored = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    position = torch.arange(129)
    labels = Labels(position % 5, position % 3, position % 2, position)
    rows, columns = (Labels(**{k: v[part] for k, v in vars(labels).items()}) for part in (slice(9), slice(9, 129)))
    presence = Presence(blocks, own, other, 0.3)
    expected = ranked_list(ranking_distance(query, gallery, presence=presence), rows, columns, Protocol("p"))
    for chunk_size, query_chunk_size in ((1000, 256), (50, 4), (7, 1)):
        sizes = {"chunk_size": chunk_size, "query_chunk_size": query_chunk_size}
        found = search(query, stored, rows, columns, Protocol("p"), presence=presence, **sizes)
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.distance, expected.distance)


@pytest.mark.parametrize("apart", [True, False])
def test_re_ranking_works_on_these_distances(apart):
    blocks = BLOCKS["subsets"]
    query, own = make(20, blocks, seed=1)
    gallery, other = make(40, blocks, seed=2) if apart else (query, own)
    presence = Presence(blocks, own, other, 0.3)
    pairs = [
        shared_distance(a, b, p, q, blocks, unrelated=0.3)
        for (a, p), (b, q) in itertools.product([(query, own), (gallery, other)], repeat=2)
    ]
    found = k_reciprocal(query, gallery if apart else None, k1=6, k2=3, presence=presence)
    if apart:
        expected = k_reciprocal_distance(pairs[1], pairs[0], pairs[3], k1=6, k2=3)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    settings = Rerank(6, 3)
    assert torch.equal(ranking_distance(query, gallery if apart else None, rerank=settings, presence=presence), found)


def side(count, *, seed):
    features, present = make(count, MODALITY_BLOCKS, seed=seed)
    position = torch.arange(count)
    head = torch.randn(count, 7 * WIDTH, generator=torch.Generator().manual_seed(seed))
    named = {"global": features, "head": head, "joint": torch.cat([features, head], dim=1)}
    blocks = joint_blocks({"global": MODALITY_BLOCKS, "head": modality_subsets()}, named)
    return FeatureSet(named, present, position, blocks), Labels(position % 3, position % 2, position * 0 - 1, position)


def test_evaluation_ranks_by_what_both_have_and_says_so():
    features, labels = side(30, seed=3)
    one_set = Side(features, labels)
    ranking = Ranking(one_set, one_set, Protocol("p"))
    result = evaluate_features(ranking)
    lacking = int((~features.present.all(dim=1)).sum())
    assert f"{lacking} of 30 queries lack a modality: pairs of items are compared by what both have" in result.messages
    for name in ("global", "head", "joint"):
        value = features.features[name]
        blocks, present = features.blocks[name], features.present
        unrelated = unrelated_cosine(value, present, blocks)
        expected = literal(value, value, present, present, blocks, unrelated=unrelated)
        torch.testing.assert_close(feature_distance(ranking, name), expected, atol=1e-6, rtol=1e-6)


def test_saved_features_rank_as_before_they_were_saved(tmp_path):
    features, labels = side(12, seed=3)
    source = ImageSource(tmp_path / "image.png")
    records = tuple(Record(f"item{i}", (source, None, None), "x", "1") for i in range(12))
    one_set = Side(features, labels, records)
    ranking = Ranking(one_set, one_set, Protocol("p"))
    save_features(tmp_path, ranking)
    found = load_features(tmp_path)
    assert found.query.features.blocks == features.blocks
    for name in ("global", "head", "joint"):
        assert torch.equal(feature_distance(found, name), feature_distance(ranking, name))


def test_presence_that_does_not_fit_is_named():
    features, present = make(4, MODALITY_BLOCKS)
    with pytest.raises(InputError, match="presence is of 3 queries and 4 gallery items, the features of 4 and 4"):
        ranking_distance(features, None, presence=Presence(MODALITY_BLOCKS, present[:3], present))
    with pytest.raises(InputError, match="width 12 cannot be 7 blocks"):
        ranking_distance(features, None, presence=Presence(modality_subsets(), present, present))


def test_the_blocks_of_a_joint_feature_have_one_width_and_count_by_it():
    """Global blocks of 2 channels and head blocks of 4: the head's are divided, and no channel changes its modality."""
    named = {"global": torch.arange(6.0)[None], "head": torch.arange(28.0)[None]}
    found = joint_blocks({"global": MODALITY_BLOCKS, "head": modality_subsets()}, named)
    assert found["joint"] == (*MODALITY_BLOCKS, *(block for block in modality_subsets() for _ in range(2)))
    present = torch.tensor([[True, False, True]])
    by_part = [
        filled_blocks(found[name], present).repeat_interleave(width, dim=1)
        for name, width in (("global", 2), ("head", 4))
    ]
    assert torch.equal(filled_blocks(found["joint"], present).repeat_interleave(2, dim=1), torch.cat(by_part, dim=1))
