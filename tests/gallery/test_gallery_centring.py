"""Centring of what a gallery holds and of its queries: always the same, by the gallery itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gallery_cases import calibrated, embed, model_of
from tiny_run import tiny_config, write_tree
from trireid.cli.app import app
from trireid.cli.gallery_options import centring_of
from trireid.embedding.embeddings import Embeddings, ModelIdentity
from trireid.embedding.items import Item
from trireid.errors import InputError, RunError
from trireid.gallery.about import new_about
from trireid.gallery.camera_means import CameraMeans
from trireid.gallery.filters import Filter
from trireid.gallery.gallery import Gallery
from trireid.train.loop import train


def call(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, done.output + done.stderr
    return done.stdout if code == 0 else " ".join(done.stderr.split())


def test_a_run_embeds_as_the_gallery_says(tmp_path: Path) -> None:
    own = ModelIdentity("0" * 64, "global", blocks=((0,),), width=1, centring="train")
    run, exported = tmp_path / "run", tmp_path / "model.onnx"
    assert [centring_of(run, given, own) for given in (None, "train")] == ["train", "train"]
    assert [centring_of(run, given) for given in (None, "train", "none")] == [None, "train", "none"]
    assert centring_of(exported, None, own) is None  # its centring was chosen at the export
    with pytest.raises(InputError, match="the vectors of the gallery have centring train: leave it out"):
        centring_of(run, "none", own)
    with pytest.raises(InputError, match="the vectors of the gallery have centring train: leave it out"):
        centring_of(None, "camera", own)
    with pytest.raises(InputError, match="is for images, with --run"):
        centring_of(None, "train", own)


def test_a_gallery_refuses_vectors_that_are_compared_by_other_blocks() -> None:
    """As versions of trireid may do with one feature of one model."""
    now = ModelIdentity("0" * 64, "joint", blocks=((0,), (1,)), width=2, version="2.0")
    own = new_about(
        replace(now, blocks=((0, 1, 2),), version="1.0"), name="things", root=None, partial=False, by_camera=False
    )
    given = Embeddings(np.ones((1, 2), np.float32), np.ones((1, 3), np.bool_), (Item({"rgb": "a.jpg"}, key="a"),), now)
    with pytest.raises(InputError, match=r"by 2 blocks and those of the gallery by 1, as versions 2\.0 and 1\.0"):
        own.check_model(given)


@pytest.mark.slow
def test_queries_and_calibrations_have_the_centring_of_the_gallery(tmp_path: Path) -> None:
    root, run, things = write_tree(tmp_path / "data", identities=13), tmp_path / "run", tmp_path / "things"
    train(tiny_config(root, run, "train.epochs=1", "model.head=hdm"), progress=False)
    call("gallery", "add", things, "--run", run, "--split", "test", "--create", "--centring", "train")
    assert json.loads(call("gallery", "info", things, "--json"))["model"]["centring"] == "train"
    for centring in ("none", "train", "camera"):
        call("embed", run, "--split", "test", "--centring", centring, "--out", tmp_path / centring)
    by_camera = Embeddings.load(tmp_path / "none").centred_by_camera()
    assert by_camera.model == Embeddings.load(tmp_path / "camera").model
    assert np.array_equal(by_camera.vectors, Embeddings.load(tmp_path / "camera").vectors)
    own = json.loads(call("gallery", "query", things, tmp_path / "train", "--top", 1, "--json"))
    image = root / "test" / "RGB" / "000100_cam1_0_00.jpg"
    images = [
        f"--{name}={str(image).replace('RGB', folder)}"
        for name, folder in zip(("rgb", "nir", "tir"), ("RGB", "NI", "TI"), strict=True)
    ]
    by_image = json.loads(
        call("gallery", "query", things, "--run", run, *images, "--query-camera", 1, "--top", 1, "--json")
    )
    assert [found[0]["matches"][0]["distance"] for found in (own, by_image)] == pytest.approx([0.0, 0.0], abs=1e-3)
    refused = call("gallery", "query", things, tmp_path / "none", code=2)
    assert "these vectors have centring none, those of the gallery train: embed the images with --centring" in refused
    for centring, said in (
        ("none", "calibrate the model that made the vectors, with the same centring"),
        ("train", ""),
    ):
        rates = tmp_path / f"{centring}.json"
        call("calibrate", run, "--centring", centring, "--target-fmr", 0.5, "--replicates", 100, "--out", rates)
        assert said in call("gallery", "calibrate", things, rates, code=2 if said else 0)
    again = tmp_path / "setting.json"
    call("calibrate", run, "evaluate.centring=train", "--target-fmr", 0.5, "--replicates", 100, "--out", again)
    assert json.loads(again.read_text())["fingerprint"] == json.loads(rates.read_text())["fingerprint"]
    call("gallery", "rebuild", things, run, tmp_path / "plain", "--centring", "none")
    assert json.loads(call("gallery", "info", tmp_path / "plain", "--json"))["model"]["centring"] == "none"


def seen() -> Embeddings:
    """Items of two cameras and of an unknown one; some lack a modality."""
    random = np.random.default_rng(0)
    present = np.ones((12, 3), dtype=bool)
    present[[1, 4, 6], 2] = False
    cameras = [(None, "gate", "d\u00e4mmerung")[row % 3] for row in range(12)]
    return embed(model_of(), 3.0 + random.standard_normal((12, 12)), present, camera=cameras)


def test_a_gallery_centred_by_camera_ranks_as_its_centred_embeddings(gallery_location: dict[str, Any]) -> None:
    items = seen()
    literal = items.centred_by_camera()
    with Gallery.create(**gallery_location, model=items.model, by_camera=True) as things:
        with pytest.raises(RunError, match="was not filled, or not to its end"):
            things.query(items)
        with pytest.raises(InputError, match=r"item 'item0001' is its own mean.* \(camera 'gate' has 1 item\)"):
            things.add(items.select([0, 1, 2, 3, 5]))
        assert not len(things)
        things.add(items)
    with Gallery.open(**gallery_location) as things:
        assert things.model.centring == "camera"
        for row, result in enumerate(things.query(items, top=12)):
            there = items.present[row]
            for match in result.matches:
                other = items.keys.index(match.key)
                both = np.repeat(there & items.present[other], 4)
                pair = [literal.vectors[number][both].astype(float) for number in (row, other)]
                cosine = pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1])
                assert match.similarity == pytest.approx(cosine, abs=1e-5)
        with pytest.raises(InputError, match="has camera 'roof', and the gallery .* 'gate', an unknown camera alone"):
            things.query(embed(model_of(), np.ones((1, 12)), np.ones((1, 3)), camera="roof"))
        with pytest.raises(InputError, match="these vectors have centring camera, and the gallery centres by camera"):
            things.query(literal)
        for change in (lambda: things.add(items), lambda: things.remove(Filter(cameras=["gate"]))):
            with pytest.raises(InputError, match="would change with each item: make another one of all items"):
                change()
        with pytest.raises(InputError, match="give a threshold, or use centring train"):
            things.set_calibration(calibrated(items.model))
    with pytest.raises(InputError, match="these have centring camera: embed the images with --centring none"):
        Gallery.create("nowhere", literal.model)


def test_a_camera_without_a_modality_has_no_mean_for_it(tmp_path: Path) -> None:
    items = embed(model_of(), np.random.default_rng(1).standard_normal((3, 12)), [[1, 1, 0]] * 3, camera="gate")
    with Gallery.create(tmp_path / "things", items.model, by_camera=True) as things:
        things.add(items)
        with pytest.raises(InputError, match="has a modality that no item of camera 'gate' has in the gallery"):
            things.query(embed(model_of(), np.ones((1, 12)), np.ones((1, 3)), camera="gate"))


@pytest.mark.parametrize("by_camera", [False, True])
def test_slots_of_zeros_are_stored_unless_a_modality_has_no_others(tmp_path: Path, *, by_camera: bool) -> None:
    """As those of cells of an image without kept patches."""
    model = model_of(((0,), (1,), (2,), (0,), (0,)))
    vectors = np.random.default_rng(2).standard_normal((4, 5, 4)).astype(np.float32)
    vectors[:2, 3], vectors[2:, [0, 4]] = 0.0, 0.0
    whole = embed(model, vectors, np.ones((4, 3)), camera=["gate", "door"] * 2)
    vectors[0, 0] = vectors[0, 4] = 0.0
    with Gallery.create(tmp_path / "things", model, by_camera=by_camera) as things:
        bad = embed(model, vectors, np.ones((4, 3)), camera="gate")
        with pytest.raises(InputError, match=r"item 'item0000' \(row 0\) has only zeros in the blocks of a modality"):
            things.add(bad)
        bad.vectors[2, 0] = np.nan
        with pytest.raises(InputError, match=r"item 'item0002' \(row 2\) has NaN"):
            things.add(bad)
        things.add(whole)
        literal = (whole.centred_by_camera() if by_camera else whole).vectors.astype(float)
        for match in things.query("item0001", top=9)[0].matches:
            pair = literal[1], literal[whole.keys.index(match.key)]
            cosine = pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1])
            assert match.similarity == pytest.approx(cosine, abs=1e-5)


def test_a_filling_that_did_not_end_is_done_again(
    gallery_location: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a kill before the means are written; what is on a server, another process may be filling still."""
    items, in_folder = seen(), isinstance(gallery_location["location"], Path)
    again = items.select(range(2, 12))
    with Gallery.create(**gallery_location, model=items.model, by_camera=True) as things:
        with monkeypatch.context() as killed:
            killed.setattr(CameraMeans, "text", killing)
            with pytest.raises(KeyboardInterrupt):
                things.add(items)
        assert (len(things), things.takes_items) == (12, True)
        for use in (lambda: things.query("item0003"), lambda: things.copy("nowhere")):
            with pytest.raises(RunError, match="was not filled, or not to its end: add all of its items"):
                use()
        if not in_folder:
            with pytest.raises(RunError, match="holds 2 items, which are not among those given, of a filling"):
                things.add(again)
            again = items
        assert things.add(again).replaced == len(again)
        assert ("removed 2 items, which are not among those given" in caplog.text) == in_folder
        assert ([item.key for item in things.list()], things.takes_items) == (list(again.keys), False)
        centred, nearest = again.centred_by_camera().vectors.astype(float), things.query(again.keys[0], top=99)[0]
        for match in nearest.matches:
            if match.compared == ("rgb", "nir", "tir"):
                pair = centred[0], centred[again.keys.index(match.key)]
                cosine = pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1])
                assert match.similarity == pytest.approx(cosine, abs=1e-5)


def killing(*_: object) -> str:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_commands_fill_a_gallery_that_is_centred_by_camera_once(tmp_path: Path) -> None:
    items, things, copy = tmp_path / "items", tmp_path / "things", tmp_path / "copy"
    damaged = seen()
    damaged.vectors[3] = 0.0
    damaged.save(items)
    for centring in ((), ("--centring", "camera")):
        assert "only zeros" in call("gallery", "add", things, items, "--create", *centring, code=2)
        assert not things.exists()
    items.with_suffix(".csv").unlink()
    items.with_suffix(".safetensors").unlink()
    seen().save(items)
    call("gallery", "add", things, items, "--create", "--centring", "camera")
    call("gallery", "copy", things, copy)
    answers = [call("gallery", "query", place, items, "--json") for place in (things, copy)]
    assert answers[0] == answers[1]
    shown = CliRunner().invoke(app, ["gallery", "query", str(things), str(items)])
    assert "3 cameras of the gallery is subtracted, so distances depend on the gallery as a whole" in shown.stderr
    assert "make another one of all items" in call("gallery", "add", things, items, code=2)
    assert "give --centring none" in call("gallery", "rebuild", things, tmp_path / "no", tmp_path / "other", code=2)
