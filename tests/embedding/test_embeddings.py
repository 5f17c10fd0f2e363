"""Embeddings: what they refuse, and that they come back from the disk as they were."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from trireid.embedding.embeddings import Embeddings, ModelIdentity, concatenate
from trireid.embedding.items import Item, seconds_of
from trireid.errors import DataError, InputError, RunError

MODEL = ModelIdentity("ab" * 32, "joint", ((0,), (1,), (2,)), 6, "demo, größer", "0.2.0")
ITEMS = (
    Item({"rgb": "/a b,c.jpg", "tir": '/"d".jpg'}, key="1", identity="p", camera="c", scene="s", time=1.25, quality=2),
    Item({}, key="naïve\u200b", box=(0, 1.5, 8, 9), metadata={"list": [1, None, {"deep": "ü"}]}),
    Item({}, key="3", box={"nir": (0, 0, 1, 1)}),
)


def embeddings(items=ITEMS, model=MODEL, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(len(items), model.width)).astype(np.float32)
    present = np.ones((len(items), 3), bool)
    present[1:2, 2] = False
    return Embeddings(vectors, present, tuple(items), model)


def test_they_come_back_from_the_disk_and_leave_nothing_else(tmp_path):
    given = embeddings()
    for name in ("gallery", "gallery.v1.csv"):
        given.save(tmp_path / name)
        found = Embeddings.load(tmp_path / name)
        assert found.items == given.items
        assert found.model == given.model
        assert np.array_equal(found.vectors, given.vectors)
        assert np.array_equal(found.present, given.present)
    endings = (".csv", ".safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"gallery{end}" for end in endings] + [
        f"gallery.v1{end}" for end in endings
    ]
    given.select([]).save(tmp_path / "empty")
    assert len(Embeddings.load(tmp_path / "empty")) == 0


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("suffix", "change", "words"),
    [
        (".safetensors", lambda data: data[:-5], "damaged"),
        (".safetensors", lambda data: data[: len(data) // 2], "damaged"),
        (".safetensors", lambda data: b"", "damaged"),
        (".safetensors", lambda data: data.replace(b'"joint', b"'joint"), "damaged"),
        (".safetensors", lambda data: data.replace(b'trireid_embeddings": "1', b'trireid_embeddings": "9'), "reads 1"),
        (".safetensors", lambda data: data.replace(b"[[0]", b"[[7]").replace(b"[[0]", b"[[7]"), "blocks"),
        (".csv", lambda data: data + b"4,,,,,,,,,,\n", "does not belong"),
        (".csv", lambda data: data.replace(b"1.25", b"1.26"), "does not belong"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, suffix, change, words):
    embeddings().save(tmp_path / "g")
    damage(tmp_path / f"g{suffix}", change)
    with pytest.raises(DataError, match=words) as caught:
        Embeddings.load(tmp_path / "g")
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_of_another_pair_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Embeddings.load(tmp_path / "none")
    embeddings().save(tmp_path / "a")
    embeddings(ITEMS[::-1]).save(tmp_path / "b")
    (tmp_path / "b.csv").replace(tmp_path / "a.csv")
    with pytest.raises(DataError, match="does not belong"):
        Embeddings.load(tmp_path / "a")


def test_older_embeddings_are_replaced_with_a_warning_and_other_files_never(tmp_path, caplog):
    embeddings().save(tmp_path / "a")
    assert not caplog.text
    embeddings(ITEMS[::-1]).save(tmp_path / "a")
    assert Embeddings.load(tmp_path / "a").items == ITEMS[::-1]
    assert f"replaced: {tmp_path / 'a.safetensors'} and {tmp_path / 'a.csv'}" in caplog.text
    for suffix, content in ((".csv", b"rgb,key\nx,1\n"), (".safetensors", b"weights")):
        (tmp_path / f"b{suffix}").write_bytes(content)
        with pytest.raises(RunError, match=f"b{suffix} exists and is no file of embeddings"):
            embeddings().save(tmp_path / "b")
        assert [path.read_bytes() for path in tmp_path.glob("*b.*")] == [content]
        (tmp_path / f"b{suffix}").unlink()


def test_a_write_that_fails_leaves_the_older_files(tmp_path, monkeypatch):
    embeddings().save(tmp_path / "a")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("trireid.embedding.embedding_files._header", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embeddings(seed=1).save(tmp_path / "a")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_parts_are_selected_and_put_together():
    given = embeddings()
    parts = [given.select([2, 0]), given.select(np.array([False, True, False]))]
    joined = concatenate(parts)
    assert joined.keys == ("3", "1", ITEMS[1].key)
    assert np.array_equal(joined.vectors, given.vectors[[2, 0, 1]])
    for rows, words in (([3], "0 to 2"), ([-1], "0 to 2"), ([0, 0], "twice"), ([0.5], "row numbers")):
        with pytest.raises(InputError, match=words):
            given.select(rows)
    for change in ({"fingerprint": "cd" * 32}, {"feature": "global"}):
        other = replace(given, model=replace(MODEL, **change))
        with pytest.raises(InputError, match="another model or feature"):
            concatenate([given, other.select([])])
    with pytest.raises(InputError, match="at least one"):
        concatenate([])
    with pytest.raises(InputError, match="parts 0 and 1 both have the item '1'"):
        concatenate([given, given])


def test_embeddings_that_do_not_fit_are_refused():
    given = embeddings()
    bare, broken = given.present.copy(), given.vectors.copy()
    bare[2], broken[1, 0] = False, np.nan
    for change, words in (
        ({"vectors": given.vectors[:, :5]}, r"float32 \(3, 6\)"),
        ({"vectors": given.vectors.astype(np.float64)}, "float64"),
        ({"present": given.present[:2]}, r"bool \(3, 3\)"),
        ({"present": bare}, "'3' has no modality"),
        ({"vectors": broken}, "NaN"),
        ({"items": (*ITEMS[:2], Item({}))}, "no key"),
        ({"items": (*ITEMS[:2], ITEMS[0])}, "twice"),
        ({"vectors": [1]}, "list"),
    ):
        with pytest.raises(InputError, match=words):
            replace(given, **change)
    with pytest.raises(InputError, match="equal width"):
        replace(MODEL, width=7)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"images": {"red": "a"}}, "rgb, nir and tir"),
        ({"images": ["a"]}, "modality: image"),
        ({"key": 7}, "the key of an item is 7, of type int"),
        ({"identity": 7}, "identity of an item is 7, of type int"),
        ({"camera": ""}, "empty"),
        ({"scene": "a\nb"}, "cannot be printed"),
        ({"time": float("nan")}, "finite"),
        ({"time": "2026-01-01"}, "finite"),
        ({"quality": 0}, "above 0"),
        ({"quality": True}, "finite"),
        ({"box": (0, 0, 0, 5)}, "left < right"),
        ({"box": {"red": (0, 0, 1, 1)}}, "rgb, nir and tir"),
        ({"box": (0, 0, 1)}, "left, top"),
        ({"metadata": {"a": {1}}}, "JSON"),
        ({"metadata": {1: 2}}, "must be text"),
        ({"metadata": {"a": float("inf")}}, "JSON"),
        ({"metadata": [1]}, "JSON"),
        ({"metadata": {"a": "b" * 40_000}}, "at most 40000"),
        ({"key": "k" * 513}, "513 bytes, at most 512"),
        ({"identity": "\u00e9" * 129}, "258 bytes, at most 256"),
        ({"time": 1_700_000_000_000}, "year 2200.*divided by 1000"),
        ({"box": np.array([1, 2, 1, 4])}, "left < right"),
    ],
)
def test_items_that_cannot_be_are_refused_in_one_line(fields, words):
    with pytest.raises(InputError, match=words) as caught:
        Item(**{"images": {}, **fields})
    assert "\n" not in str(caught.value)


def test_boxes_of_numpy_and_images_that_are_none_are_taken():
    item = Item({"rgb": "a", "nir": None}, box={"rgb": np.array([1, 2, 13, 24])})
    assert (item.images, item.box) == ({"rgb": "a"}, {"rgb": (1, 2, 13, 24)})
    assert Item({}, box=np.array([1.5, 2, 13, 24])) == Item({}, box=[1.5, 2, 13, 24])


def test_times_of_tables():
    for text, words in (("20240101", "write 2024-01-01, or 20240101.0"), ("1700000000000", "milliseconds by 1000")):
        with pytest.raises(InputError, match=words):
            seconds_of(text)
    assert (seconds_of("20240101.0"), seconds_of("20241301")) == (20240101, 20241301)
    assert seconds_of("2026-11-26") == seconds_of("2026-11-26T00:00:00Z") == 1795651200
    for text in ("yesterday", "nan", "1e999", ""):
        with pytest.raises(InputError, match="neither a number"):
            seconds_of(text)


def test_items_and_embeddings_need_no_torch():
    code = "import sys, trireid.embedding.interface, trireid.embedding.embedding_files; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
