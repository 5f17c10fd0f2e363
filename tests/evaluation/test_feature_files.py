from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trireid.data.records import ImageSource, Record
from trireid.errors import InputError, RunError
from trireid.evaluation import feature_files as saved_module
from trireid.evaluation.feature_files import load_features, save_features
from trireid.evaluation.features import FeatureSet
from trireid.evaluation.ranking import Ranking, Rerank, Side
from trireid.types import Labels, Protocol


def make_side(count, tmp_path, head=True):
    generator = torch.Generator().manual_seed(count)
    parts = [torch.randn(count, 4, generator=generator) for _ in range(2 if head else 1)]
    features = dict(zip(("global", "head"), parts, strict=False)) | {"joint": torch.cat(parts, dim=-1)}
    position = torch.arange(count)
    records = tuple(
        Record(
            f"item{i}",
            (ImageSource(tmp_path / f"{i}.png"), ImageSource(tmp_path / f"{i}.png", (8, 16)), None),
            identity=str(i % 3),
            camera="1",
        )
        for i in range(count)
    )
    labels = Labels(position % 3, torch.zeros_like(position), torch.full((count,), -1), position)
    return Side(FeatureSet(features, torch.ones(count, 3, dtype=torch.bool), position), labels, records)


def assert_same(found, expected):
    assert found.records == expected.records
    for name in expected.features.features:
        assert torch.equal(found.features.features[name], expected.features.features[name])
    assert torch.equal(found.features.present, expected.features.present)
    for name, value in vars(expected.labels).items():
        assert torch.equal(getattr(found.labels, name), value)


@pytest.mark.parametrize("head", [True, False])
def test_two_sides_come_back_as_they_were(tmp_path, head):
    saved = Ranking(
        make_side(3, tmp_path, head),
        make_side(5, tmp_path, head),
        Protocol("cross-scene", "scene"),
        False,
        Rerank(7, 2),
    )
    save_features(tmp_path, saved)
    found = load_features(tmp_path)
    assert_same(found.query, saved.query)
    assert_same(found.gallery, saved.gallery)
    assert (found.protocol, found.normalise, found.rerank) == (saved.protocol, False, Rerank(7, 2))


def test_one_set_is_written_once_and_read_as_one(tmp_path):
    side = make_side(4, tmp_path)
    save_features(tmp_path, Ranking(side, side, Protocol("p")))
    found = load_features(tmp_path)
    assert found.query_is_gallery
    assert "gallery" not in json.loads((tmp_path / "records.json").read_text())
    assert_same(found.query, side)


def test_relative_image_paths_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    side = make_side(2, Path("images"))
    save_features(tmp_path, Ranking(side, side, Protocol("p")))
    assert load_features(tmp_path).query.records[0].images[0].path == tmp_path / "images" / "0.png"


def test_missing_damaged_and_mixed_files_are_errors(tmp_path):
    with pytest.raises(RunError, match="no saved features"):
        load_features(tmp_path)
    side = make_side(4, tmp_path)
    save_features(tmp_path, Ranking(side, side, Protocol("p")))
    records = (tmp_path / "records.json").read_text()
    description = json.loads(records)
    (tmp_path / "records.json").write_text(json.dumps(description | {"query": description["query"][:2]}))
    with pytest.raises(RunError, match="do not belong together"):
        load_features(tmp_path)
    (tmp_path / "records.json").write_text(json.dumps(description | {"version": 99}))
    with pytest.raises(RunError, match="format version 99"):
        load_features(tmp_path)
    (tmp_path / "records.json").write_text(records[:50])
    with pytest.raises(RunError, match="is damaged"):
        load_features(tmp_path)
    (tmp_path / "records.json").write_text(records)
    data = (tmp_path / "features.safetensors").read_bytes()
    (tmp_path / "features.safetensors").write_bytes(data[:-20])
    with pytest.raises(RunError, match="is damaged"):
        load_features(tmp_path)


def test_unlike_lengths_are_an_error(tmp_path):
    side = make_side(4, tmp_path)
    broken = Side(side.features, side.labels, side.records[:3])
    with pytest.raises(InputError, match="4 features, 4 labels and 3 records"):
        save_features(tmp_path, Ranking(broken, broken, Protocol("p")))


def test_a_full_disk_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    side = make_side(4, tmp_path)
    save_features(tmp_path, Ranking(side, side, Protocol("p")))
    before = (tmp_path / "features.safetensors").read_bytes()

    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_module, "save_file", full)
    with pytest.raises(RunError, match=r"cannot write .*No space left"):
        save_features(tmp_path, Ranking(side, side, Protocol("p")))
    assert (tmp_path / "features.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} >= {"features.safetensors", "records.json"}
    assert not list(tmp_path.glob(".*"))


def test_others_may_read_the_features(tmp_path):
    side = make_side(4, tmp_path)
    save_features(tmp_path, Ranking(side, side, Protocol("p")))
    modes = {path.stat().st_mode for path in (tmp_path / "features.safetensors", tmp_path / "records.json")}
    assert len(modes) == 1  # the writer of safetensors makes files for their owner alone
