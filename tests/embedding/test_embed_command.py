"""`trireid embed`: all kinds of input, one result, and runs that were broken off."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import trireid
from tiny_run import untrained_run, write_tree
from trireid.cli.app import app
from trireid.embedding import sharded


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    tree = write_tree(folder / "tree", identities=3)
    return untrained_run(tree, folder / "run", "evaluate.batch_size=2", "model.sie_coefficient=0")


def embed(*words):
    return CliRunner().invoke(app, ["embed", *map(str, words)])


def test_a_split_a_folder_and_a_table_give_the_same_vectors(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "PART", 4)
    done = embed(run, "--split", "test", "--out", tmp_path / "a", "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, result["items"], result["presence"]) == (0, 12, {"rgb+nir+tir": 12})
    first = trireid.Embeddings.load(tmp_path / "a")
    assert first.items[0].identity == "000100"
    for source in (run.parent / "tree/test", tmp_path / "a.csv"):
        assert "items" in embed(run, source, "--out", tmp_path / "b").stdout
        again = trireid.Embeddings.load(tmp_path / "b")
        assert np.array_equal(again.vectors, first.vectors)
        assert again.keys == first.keys
    tested = trireid.Embedder(run, device="cpu").embed(first.items)
    assert np.array_equal(tested.vectors, first.vectors)
    image = first.items[0].images["nir"]
    assert embed(run, "--nir", image, "--out", tmp_path / "c", "--feature", "global").exit_code == 0
    assert trireid.Embeddings.load(tmp_path / "c").present.tolist() == [[False, True, False]]
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".safetensors"}


def test_items_of_one_object_become_one_vector(run, tmp_path):
    arguments = (run, "--split", "query", "--out", tmp_path / "a", "--aggregate-by")
    assert json.loads(embed(*arguments, "identity,camera", "--json").stdout)["items"] == 6
    assert trireid.Embeddings.load(tmp_path / "a").keys[0] == "000100/1"
    done = embed(*arguments, "track")
    assert (done.exit_code, "has no track" in done.stderr) == (2, True)


def test_bad_images_end_in_one_line_or_are_left_out(run, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no")
    good = next((run.parent / "tree/test/RGB").iterdir())
    (tmp_path / "t.csv").write_text(f"rgb,key\nbad.jpg,x\n{good},y\n")
    done = embed(run, tmp_path / "t.csv", "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert "item 'x': " in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("o*.*"))
    done = embed(run, tmp_path / "t.csv", "--out", tmp_path / "o", "--skip-bad")
    assert done.exit_code == 0
    assert "left out: item 'x'" in done.stderr
    assert trireid.Embeddings.load(tmp_path / "o").keys == ("y",)
    (tmp_path / "t.csv").write_text("rgb\nbad.jpg\n")
    done = embed(run, tmp_path / "t.csv", "--out", tmp_path / "none", "--skip-bad")
    assert (done.exit_code, "none of the 1 items can be read" in done.stderr) == (2, True)
    assert not list(tmp_path.glob("none*"))


def test_a_broken_run_goes_on_and_gives_the_same_bytes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "PART", 4)
    arguments = (run, run.parent / "tree/test", "--out")
    embed(*arguments, tmp_path / "whole")
    written = []

    def write_and_break(part, *rest):
        write_part(part, *rest)
        written.append(part.path)
        if len(written) == 2:
            raise KeyboardInterrupt

    write_part = sharded._write_part
    monkeypatch.setattr(sharded, "_write_part", write_and_break)
    assert embed(*arguments, tmp_path / "broken").exit_code == 130
    assert not (tmp_path / "broken.csv").exists()
    done = embed(*arguments, tmp_path / "broken")
    assert (done.exit_code, "2 parts of a run" in done.stderr) == (2, True)
    written[0].write_bytes(written[0].read_bytes()[:-1])  # a part that is not whole is computed again
    assert embed(*arguments, tmp_path / "broken", "--resume").exit_code == 0
    assert len(written) == 4
    for suffix in (".csv", ".safetensors"):
        assert (tmp_path / f"broken{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not (tmp_path / "broken.parts").exists()


def test_a_moved_data_set_deep_images_and_facts_of_a_single_item_are_given_by_options(run, tmp_path):
    (tmp_path / "moved").symlink_to(run.parent / "tree")
    done = embed(run, "--split", "test", "--set", f"data.root={tmp_path / 'moved'}", "--out", tmp_path / "a")
    assert done.exit_code == 0
    assert trireid.Embeddings.load(tmp_path / "a").items[0].images["rgb"].startswith(str(tmp_path / "moved"))
    np.save(tmp_path / "deep.npy", np.arange(64, dtype=np.uint16).reshape(8, 8) + 1000)
    words = (run, "--tir", tmp_path / "deep.npy", "--out", tmp_path / "b")
    assert "--set data.range.tir=[LOW,HIGH]" in embed(*words).stderr.splitlines()[-1]
    facts = ("--key", "k", "--identity", "i", "--camera", "c", "--scene", "s", "--time", "1970-01-02")
    assert embed(*words, "--set", "data.range.tir=[1000,1063]", *facts).exit_code == 0
    found, (item,) = trireid.Embeddings.load(tmp_path / "b"), trireid.Embeddings.load(tmp_path / "b").items
    assert (item.key, item.identity, item.camera, item.scene, item.time) == ("k", "i", "c", "s", 86400)
    assert found.model.fingerprint != trireid.Embeddings.load(tmp_path / "a").model.fingerprint
    again = trireid.Embedder(run, device="cpu", ranges={"tir": (1000, 1063)}).embed([item])
    assert np.array_equal(again.vectors, found.vectors)
    assert again.model == found.model
    done = embed(*words, "--set", "data.range.tir=[1000,1063]")
    assert f"replaced: {tmp_path / 'b.safetensors'} and {tmp_path / 'b.csv'}" in done.stderr
    (tmp_path / "t.csv").write_text(f"tir\n{tmp_path / 'deep.npy'}\n")
    assert "t.csv exists and is no file of emb" in embed(run, tmp_path / "t.csv", "--out", tmp_path / "t").stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rgb", "a.jpg", "--split", "test"), "give one of"),
        ((), "give one of"),
        (("--split", "val"), "choose train, query, gallery, test"),
        (("none.csv",), "none.csv: no such file or folder"),
        (("--rgb", "a.jpg", "--time", "20240101"), "write 2024-01-01"),
        (("t", "--camera", "1"), "--camera are for the single item"),
        (("t", "--set", "data.root=t"), "--set data.root changes nothing here: data.range.nir, data.range.rgb"),
        (("--split", "test", "--set", "data.image_size=[8,8]"), "data.image_size changes nothing here: data.format"),
        (
            ("--split", "test", "--set", "data.root=none"),
            "none: no such folder; set data.root (--set data.root=FOLDER of `tri",
        ),
        (("--rgb", "a.jpg", "--set", "data.range.rgb=[2,1]"), "must be smaller"),
        (("--rgb", "none.jpg"), "No such file"),
        (("--rgb", "none.jpg", "--device", "abacus"), "device is 'abacus'"),
        (("--rgb", "none.jpg", "--feature", "rgb"), "choose global"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    done = embed(run, *words, "--out", "o")
    assert done.exit_code == 2
    assert message in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("o*.*"))
