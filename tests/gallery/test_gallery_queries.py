"""The answers of a gallery are those of brute force."""

import dataclasses

import numpy as np
import pytest

from gallery_cases import (
    BLOCKS,
    SUBSET_BLOCKS,
    Reference,
    check_list,
    embed,
    model_of,
    random_embeddings,
    random_filter,
)
from trireid.gallery import engine, search
from trireid.gallery.filters import Filter
from trireid.gallery.gallery import Gallery

RULES = ("none", "camera", "scene", "cross_camera")


def filled_gallery(random, gallery, reference, count):
    """Fill, replace, remove, label and unlabel, the same way on both sides."""
    first = random_embeddings(random, gallery.model, count)
    added = gallery.add(first)
    assert (added.added, added.replaced) == (count, 0)
    again = random_embeddings(random, gallery.model, count // 4, keys=[item.key for item in first.items[: count // 4]])
    assert gallery.add(again).replaced == count // 4
    reference.add(first)
    reference.add(again)
    keys = sorted(reference.items)
    assert gallery.remove(Filter(keys=keys[5:15])) == 10
    for key in keys[5:15]:
        del reference.items[key]
    for change, names, identity in ((gallery.label, keys[20:30], "id7"), (gallery.unlabel, keys[40:50], None)):
        assert change(names, identity) if identity else change(names)
        for key in names:
            item, vector, present = reference.items[key]
            reference.items[key] = (dataclasses.replace(item, identity=identity), vector, present)
    reference.unrelated = gallery.info().unrelated or 0.0


def compare(random, gallery, reference, num_queries):
    """Random queries, by features and by key, against brute force."""
    queries = random_embeddings(random, gallery.model, num_queries)
    for start in range(0, num_queries, 20):
        rows = range(start, min(start + 20, num_queries))
        where, exclude = random_filter(random), RULES[random.integers(0, 4)]
        top, by, reduce = int(random.integers(1, 30)), ("item", "identity")[random.integers(0, 2)], "best"
        if by == "identity":
            reduce = ("best", "mean")[random.integers(0, 2)]
        options = {"top": top, "by": by, "reduce": reduce, "where": where, "exclude": exclude}
        if random.integers(0, 2):
            keys = [str(key) for key in random.choice(sorted(reference.items), len(rows))]
            sides, own = [reference.items[key] for key in keys], keys
            results = gallery.query(keys, **options)
        else:
            sides = [(queries.items[row], queries.vectors[row], queries.present[row]) for row in rows]
            own = [None] * len(rows)
            chosen = dataclasses.replace(
                queries,
                vectors=queries.vectors[rows.start : rows.stop],
                present=queries.present[rows.start : rows.stop],
                items=queries.items[rows.start : rows.stop],
            )
            results = gallery.query(chosen, **options)
        for (item, vector, present), key, result in zip(sides, own, results, strict=True):
            ranked, apart = reference.nearest(item, vector, present, where=where, exclude=exclude, own=key)
            if by == "identity":
                check_list(
                    [(match.distance, match.identity) for match in result.matches],
                    reference.identities(ranked, apart, reduce)[:top],
                )
            else:
                check_list([(match.distance, match.key) for match in result.matches], ranked[:top])


def test_queries_find_what_brute_force_finds(gallery_location):
    random = np.random.default_rng(1)
    with Gallery.create(model=model_of(), partial=True, **gallery_location) as gallery:
        reference = Reference(gallery.model)
        filled_gallery(random, gallery, reference, 100)
        compare(random, gallery, reference, 60)


def test_queries_share_calls_and_see_what_was_written_between_them(gallery_location, monkeypatch):
    random, calls = np.random.default_rng(2), []
    monkeypatch.setattr(engine, "_KEPT_BYTES", 4000)  # of 16 items
    for name in ("search", "_query"):
        original = getattr(engine.Engine, name)
        monkeypatch.setattr(
            engine.Engine,
            name,
            lambda *given, own=name, call=original, **more: calls.append(own) or call(*given, **more),
        )
    with Gallery.create(model=model_of(), partial=True, **gallery_location) as gallery:
        reference = Reference(gallery.model)
        keys = [f"k{number}" for number in range(30)]
        for _ in range(2):
            some = random_embeddings(random, gallery.model, 30, keys=keys)
            gallery.add(some)
            reference.add(some)
            compare(random, gallery, reference, 8)
        whole = embed(gallery.model, random.standard_normal((9, 12)), [(True, True, True)] * 9)
        gallery.query(whole, top=3)
        calls.clear()
        gallery.query(whole, top=3)
        assert calls.count("search") == 7  # of each presence, not of each query
        assert calls.count("_query") < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocks", "seed"),
    [*((BLOCKS, seed) for seed in range(5)), *((SUBSET_BLOCKS, seed) for seed in range(2))],
    ids=[*(f"three blocks-{seed}" for seed in range(5)), *(f"seven blocks-{seed}" for seed in range(2))],
)
def test_1000_random_queries_find_what_brute_force_finds(gallery_location, blocks, seed):
    random = np.random.default_rng(seed)
    with Gallery.create(model=model_of(blocks), partial=seed % 2 == 0, **gallery_location) as gallery:
        reference = Reference(gallery.model)
        filled_gallery(random, gallery, reference, 300)
        compare(random, gallery, reference, 100)
        gallery.measure_unrelated()
        reference.unrelated = gallery.info().unrelated
        compare(random, gallery, reference, 100)


@pytest.mark.slow
def test_lists_that_are_deeper_than_one_search_are_read_in_ranges_of_keys(gallery_location, monkeypatch):
    for module, name, value in (
        (engine, "LARGEST_LIMIT", 16),
        (search, "LARGEST_LIMIT", 16),
        (engine, "_BATCH_ROWS", 4),
    ):
        monkeypatch.setattr(module, name, value)
    random = np.random.default_rng(3)
    with Gallery.create(model=model_of(), partial=True, **gallery_location) as gallery:
        reference = Reference(gallery.model)
        filled_gallery(random, gallery, reference, 200)
        compare(random, gallery, reference, 60)
