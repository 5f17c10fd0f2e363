"""Centring of what a gallery holds and of its queries: always the same, by the gallery itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiny_run import tiny_config, write_tree
from trireid.cli.app import app
from trireid.cli.gallery_options import centring_of
from trireid.embedding.embeddings import ModelIdentity
from trireid.errors import InputError
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
    with pytest.raises(InputError, match="is for images, with --run"):
        centring_of(None, "train", own)


@pytest.mark.slow
def test_queries_and_calibrations_have_the_centring_of_the_gallery(tmp_path: Path) -> None:
    root, run, things = write_tree(tmp_path / "data", identities=13), tmp_path / "run", tmp_path / "things"
    train(tiny_config(root, run, "train.epochs=1", "model.head=hdm"), progress=False)
    call("gallery", "add", things, "--run", run, "--split", "test", "--create", "--centring", "train")
    assert json.loads(call("gallery", "info", things, "--json"))["model"]["centring"] == "train"
    for centring in ("none", "train"):
        call("embed", run, "--split", "test", "--centring", centring, "--out", tmp_path / centring)
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
