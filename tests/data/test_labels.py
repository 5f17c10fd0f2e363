from __future__ import annotations

import json
from pathlib import Path

import pytest

from trireid.data.labels import LabelMap, rank_labels
from trireid.data.records import ImageSource, Record
from trireid.data.splits import hold_out
from trireid.errors import DataError, InputError


def record(name: str, identity: str, camera: str | None = None, scene: str | None = None, folder: str = "a") -> Record:
    return Record(name, (ImageSource(Path(folder) / name), None, None), identity, camera, scene)


def test_label_map_is_sorted_and_knows_strangers() -> None:
    records = [record("1", "b", "2"), record("2", "a", None), record("3", "c", "1"), record("4", "a", "2")]
    labels = LabelMap.from_records(records)
    assert labels == LabelMap(("a", "b", "c"), ("1", "2"))
    assert LabelMap.from_records(reversed(records)) == labels
    assert [labels.identity_index(name) for name in ("a", "c", "z")] == [0, 2, -1]
    assert [labels.camera_index(name) for name in ("2", "9", None)] == [1, -1, -1]
    assert LabelMap.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels


def test_label_map_refuses_other_content() -> None:
    with pytest.raises(InputError, match="sorted, without repetition"):
        LabelMap(("b", "a"), ())
    with pytest.raises(InputError, match="the keys must be identities and cameras"):
        LabelMap.from_dict({"identities": []})


def test_rank_labels_share_codes() -> None:
    query = [record("q", "b", "2", "s1"), record("x", "a", None, None)]
    gallery = [record("x", "a", None, None, folder="copy"), record("y", "b", "1", "s1"), record("z", "c", "2", "s2")]
    q, g = rank_labels(query, gallery)
    assert q.identity.tolist() == [1, 0]
    assert g.identity.tolist() == [0, 1, 2]
    assert (q.camera.tolist(), g.camera.tolist()) == ([1, -1], [-1, 0, 1])
    assert (q.scene.tolist(), g.scene.tolist()) == ([0, -1], [-1, 0, 1])
    assert q.item[1] == g.item[0]  # the copy in another folder is the same item
    assert len({*q.item.tolist(), *g.item.tolist()}) == 4


def test_rank_labels_of_one_set_are_one_object() -> None:
    records = (record("1", "a", "1"), record("2", "a", "2"))
    query, gallery = rank_labels(records, records)
    assert query is gallery


def make_training() -> tuple[Record, ...]:
    many = [record(f"{identity}{camera}", identity, camera) for identity in "abcdef" for camera in "12"]
    return (*many, record("g1", "g", "1"), record("g1b", "g", "1"))  # g is seen by one camera only


def test_hold_out_is_reproducible_and_rankable() -> None:
    train = make_training()
    kept, held = hold_out(train, 3, seed=5)
    names = {item.identity for item in held}
    assert len(names) == 3
    assert "g" not in names
    assert names.isdisjoint(item.identity for item in kept)
    assert len(kept) + len(held) == len(train)
    assert {item.identity for item in hold_out(train[::-1], 3, seed=5)[1]} == names
    assert any({item.identity for item in hold_out(train, 3, seed=seed)[1]} != names for seed in range(6, 12))


def test_hold_out_limits() -> None:
    train = make_training()
    assert hold_out(train, 0, seed=1) == (train, ())
    with pytest.raises(DataError, match=r"data\.val_ids 6: at most 5 of the 7"):
        hold_out(train, 6, seed=1)
    with pytest.raises(DataError, match="at most 0"):  # one camera each: nobody can be ranked
        hold_out(tuple(item for item in train if item.camera == "1" and item.identity != "g"), 1, seed=1)
    assert len({item.identity for item in hold_out(train, 5, seed=1, exclude="none")[1]}) == 5
