"""Aggregates: the literal definition, what they keep, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trireid.embedding.aggregate import aggregate, mean_vector
from trireid.embedding.embeddings import Embeddings, ModelIdentity
from trireid.embedding.items import Item
from trireid.errors import InputError
from trireid.evaluation.presence import shared_distance
from trireid.types import modality_subsets

HDM = modality_subsets()
RGB_NIR_TIR = ((0,), (1,), (2,))


def literal_mean(vectors, present, weights, blocks):
    """Block by block and item by item."""
    size = len(vectors[0]) // len(blocks)
    result = []
    for k, block in enumerate(blocks):
        direction, squares, total = [0.0] * size, 0.0, 0.0
        for vector, has, weight in zip(vectors, present, weights, strict=True):
            if not any(has[m] for m in block):
                continue
            filled = [j for j, other in enumerate(blocks) if any(has[m] for m in other)]
            length = math.sqrt(sum(vector[j * size + d] ** 2 for j in filled for d in range(size)) / len(filled))
            own = [vector[k * size + d] / length for d in range(size)]
            norm = math.sqrt(sum(value**2 for value in own))
            direction = [a + weight * value / norm for a, value in zip(direction, own, strict=True)]
            squares, total = squares + weight * norm**2, total + weight
        norm = math.sqrt(sum(value**2 for value in direction))
        result += [value / norm * math.sqrt(squares / total) if norm else 0.0 for value in direction]
    return result


def draw(n, blocks, seed):
    generator = np.random.default_rng(seed)
    present = generator.random((n, 3)) < 0.6
    present[np.arange(n), generator.integers(0, 3, n)] = True
    filled = np.stack([present[:, list(block)].any(axis=1) for block in blocks], axis=1)
    vectors = generator.normal(size=(n, len(blocks), 4)) * generator.uniform(0.2, 5, (n, len(blocks), 1))
    return (vectors * filled[..., None]).reshape(n, -1).astype(np.float32), present, generator.uniform(0.1, 3, n)


@pytest.mark.parametrize("blocks", [RGB_NIR_TIR, HDM, (*RGB_NIR_TIR, *HDM)])
def test_the_mean_is_that_of_the_definition(blocks):
    for seed in range(8):
        vectors, present, weights = draw(1 + seed % 4, blocks, seed)
        found = mean_vector(vectors, present, weights, blocks)
        assert np.allclose(found, literal_mean(vectors.tolist(), present, weights, blocks), atol=1e-9)


def made(vectors, present, items, blocks=RGB_NIR_TIR):
    return Embeddings(vectors, present, tuple(items), ModelIdentity("0" * 64, "global", blocks, vectors.shape[1]))


def test_one_item_and_its_copies_keep_their_distances():
    vectors, present, _ = draw(6, RGB_NIR_TIR, 3)
    vectors[1:3], present[1:3] = 3 * vectors[0], present[0]  # two copies of another length
    items = [Item({}, key=str(row), identity="copy" if row < 3 else str(row)) for row in range(6)]
    single = made(vectors, present, items)
    joined = aggregate(single)
    assert joined.keys == ("copy", "3", "4", "5")

    def distances(one, other):
        tensors = (torch.from_numpy(each) for each in (one.vectors, other.vectors, one.present, other.present))
        return shared_distance(*tensors, RGB_NIR_TIR, unrelated=0.1)

    expected = distances(single.select([0, 3, 4, 5]), single)
    assert torch.allclose(distances(joined, single), expected, atol=1e-5)


def test_quality_decides_and_presence_is_the_union():
    vectors = np.array([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 2, 0]], np.float32)
    present = np.array([[True, False, False], [True, False, True]])
    images = ({"rgb": "/0.jpg"}, {"rgb": "/1.jpg", "tir": "/1t.jpg"})
    items = [
        Item(images[0], key="a", camera="1", scene="s", time=5, quality=1000, metadata={"track": 4, "n": 1}),
        Item(images[1], key="b", camera="2", scene="s", time=3, box=(0, 0, 9, 9), metadata={"track": 4, "n": 2}),
    ]
    joined = aggregate(made(vectors, present, items), "track, scene")
    (item,) = joined.items
    assert joined.present.tolist() == [[True, False, True]]
    assert joined.vectors[0, 0] > 100 * joined.vectors[0, 1] > 0
    assert item == Item(
        {"rgb": "/0.jpg", "tir": "/1t.jpg"}, key="4/s", scene="s", time=3, box={"tir": (0, 0, 9, 9)},
        metadata={"track": 4, "num_items": 2, "item_keys": ["a", "b"]},
    )  # fmt: skip


def test_labels_are_given_by_name_by_a_function_or_as_they_are():
    vectors, present, _ = draw(3, RGB_NIR_TIR, 0)
    given = made(vectors, present, [Item({}, key=key) for key in ("a1", "a2", "b1")])
    assert aggregate(given, lambda item: item.key[0]).keys == aggregate(given, ["a", "a", "b"]).keys == ("a", "b")
    assert len(aggregate(given.select([]))) == 0
    twice = aggregate(aggregate(given, ["a", "a", "b"]), ["x", "x"])
    assert twice.items[0].metadata == {"num_items": 3, "item_keys": ["a1", "a2", "b1"]}
    many = made(*draw(30, RGB_NIR_TIR, 0)[:2], [Item({}, key=f"{row:02}" + "k" * 500) for row in range(30)])
    listed = aggregate(many, ["x"] * 30).items[0].metadata
    assert (listed["num_items"], listed["item_keys"]) == (30, list(many.keys[:15]))
    for by, words in (
        ("identity", "'a1' has no identity"),
        ("track", "'a1' has no track"),
        (["a"], "1 labels for 3 items"),
        ([1, 2, 3], "label of the item 'a1' is 1"),
        (lambda item: None, "label of the item 'a1' is None"),
        (lambda item: item.metadata["track"], "fails for the item 'a1' .KeyError: 'track'"),
        (5, "by is 5: give identity, camera"),
        (None, "by is None: give identity, camera"),
        (["identity", "camera", "scene"], "as one text, 'identity,camera,scene'"),
        ("key", "cannot be put together by their key"),
        ("", "a name in `by` is empty"),
        (["k" * 513] * 3, "513 bytes, as a key at most 512"),
    ):
        with pytest.raises(InputError, match=words):
            aggregate(given, by)
