"""Commands that embed by an exported file: the vectors of the run, no torch, refusals in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_onnx_embedder import SIZE, write_means
from typer.testing import CliRunner

from trireid import Calibration, Embeddings, Gallery
from trireid.cli.app import app
from trireid.embedding.opening import open_embedder
from trireid.errors import InputError

NAMES = ("rgb", "nir", "tir")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported file, and a table of 24 labelled items of twelve objects."""
    folder = tmp_path_factory.mktemp("commands")
    write_means(folder / "means.onnx", ranges=dict.fromkeys(NAMES))
    random = np.random.default_rng(0)
    lines = ["rgb,nir,tir,key,id"]
    for number in range(24):
        paths = [folder / f"{name}{number}.png" for name in NAMES]
        for path in paths:
            Image.fromarray(random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
        lines.append(",".join([*map(str, paths), f"item{number}", str(number // 2)]))
    (folder / "items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.slow
def test_a_file_embeds_fills_a_gallery_is_asked_and_calibrates(folder, tmp_path):
    file, table = folder / "means.onnx", folder / "items.csv"
    words = ["--feature", "global"]
    done = invoke("embed", file, table, "--out", tmp_path / "means", *words)
    assert done.exit_code == 0, done.output
    embedded = Embeddings.load(tmp_path / "means")
    assert embedded.keys == tuple(f"item{number}" for number in range(24))
    out = tmp_path / "rates.json"
    done = invoke("calibrate", file, "--data", table, *words, "--target-fmr", 0.5, "--replicates", 100, "--out", out)
    assert done.exit_code == 0, done.output
    assert Calibration.load(out).fingerprint == embedded.model.fingerprint
    gallery = tmp_path / "gallery"
    # beside `means.csv`, which is no reason to take the file for embeddings
    (tmp_path / "means.onnx").write_bytes(file.read_bytes())
    Calibration.load(out).save(tmp_path / "means.calibration.json")
    assert "has the calibration" in invoke("gallery", "create", gallery, tmp_path / "means.onnx", *words).stderr
    assert "added 24" in invoke("gallery", "add", gallery, table, "--run", file, *words).stdout
    assert invoke("gallery", "rebuild", gallery, file, tmp_path / "again", *words).exit_code == 0
    with Gallery.open(tmp_path / "again") as again:
        (result,) = again.query(embedded.select([3]), top=1)
    assert (result.matches[0].key, len(result.matches)) == ("item3", 1)


@pytest.mark.slow
def test_embed_and_query_import_no_torch(folder, tmp_path):
    file, table = folder / "means.onnx", folder / "items.csv"
    gallery = tmp_path / "gallery"
    commands = [
        ["embed", file, table, "--out", tmp_path / "means", "--feature", "global"],
        ["gallery", "add", gallery, table, "--run", file, "--feature", "global", "--create"],
        ["gallery", "query", gallery, "--rgb", folder / "rgb4.png", "--run", file, "--feature", "global", "--top", "1"],
    ]
    lines = ["import sys", "from trireid.cli.app import app"]
    lines += [f"app({[str(word) for word in words]}, standalone_mode=False)" for words in commands]
    lines += ["print([name for name in sys.modules if name.split('.')[0] in ('torch', 'torchvision', 'timm')])"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "item4" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("embed", "F", "--out", "o", "--split", "test"),
            "--split needs a run, and F is an exported file",
        ),
        (("embed", "F", "--out", "o", "--rgb", "I", "--precision", "bf16"), "chosen at the export, with --half"),
        (("embed", "F", "--out", "o", "--rgb", "I", "--device", "cuda"), "install onnxruntime-gpu"),
        (("embed", "F", "--out", "o", "--rgb", "I", "--device", "mps"), "device is 'mps'; an exported file runs on"),
        (("gallery", "add", "g", "--create", "--run", "F", "--split", "test"), "--split needs a run"),
        (("gallery", "create", "g", "no.onnx"), "no.onnx does not exist"),
        (("calibrate", "F"), "give --data FILE.csv with labelled items, or the run"),
        (("calibrate", "F", "data.root=x", "--data", "T"), "a setting KEY=VALUE needs a run"),
    ],
)
def test_what_a_file_cannot_do_is_one_line(folder, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    places = {"F": folder / "means.onnx", "I": folder / "rgb0.png", "T": folder / "items.csv"}
    done = invoke(*(places.get(word, word) for word in words))
    assert done.exit_code == 2
    assert message.replace(" F ", f" {places['F']} ") in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("[og].*"))


@pytest.mark.slow
def test_a_query_of_images_has_facts_and_images_that_cannot_be_read_are_left_out(folder, tmp_path):
    gallery, table, broken = tmp_path / "gallery", tmp_path / "seen.csv", tmp_path / "broken.png"
    broken.write_bytes((folder / "rgb2.png").read_bytes()[:60])
    rows = [(folder / "rgb0.png", "a", "gate"), (folder / "rgb1.png", "b", "yard"), (broken, "c", "gate")]
    table.write_text("rgb,key,camera,id\n" + "".join(f"{path},{key},{camera},7\n" for path, key, camera in rows))
    run = ["--run", folder / "means.onnx", "--feature", "global"]
    add = ["gallery", "add", gallery, table, "--create", "--root", folder, *run]
    refused = invoke(*add)
    assert (refused.exit_code, "broken.png" in refused.stderr, gallery.exists()) == (2, True, False)
    done = invoke(*add, "--skip-bad", "--json")
    assert json.loads(done.stdout)["left_out"] == 1
    query = ["gallery", "query", gallery, *run, "--rgb", folder / "rgb3.png", "--exclude", "camera", "--json"]
    for facts, keys in (
        ([], ["a", "b"]),
        (["--query-camera", "gate"], ["a", "b"]),
        (["--query-camera", "gate", "--query-identity", "7"], ["b"]),
    ):
        done = invoke(*query, *facts)
        found = json.loads(done.stdout)[0]["matches"]
        assert sorted(match["key"] for match in found) == keys
        assert ("hides nothing" in done.stderr) == (len(keys) == 2)
    assert [Path(match["images"]["rgb"]) for match in found] == [folder / "rgb1.png"]


def test_several_processes_with_a_file_are_refused(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = invoke("embed", folder / "means.onnx", "--rgb", folder / "rgb0.png", "--out", "o")
    assert (done.exit_code, "start the command by itself" in done.stderr) == (2, True)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_is_not_used_is_refused(folder, monkeypatch):
    runtime = "trireid.embedding.onnx_runtime.available_providers"
    monkeypatch.setattr(runtime, lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(InputError, match="ONNX Runtime has no CUDA here"):
        open_embedder(folder / "means.onnx", device="cuda", feature="global")
