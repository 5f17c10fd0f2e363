"""`trireid calibrate`: from a run or embeddings to `calibration.json`, and what ends in one line."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import trireid
from tiny_run import untrained_run, write_tree
from trireid.cli.app import app


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    tree = write_tree(folder / "tree", identities=12, per_camera=1)
    return untrained_run(tree, folder / "run", "evaluate.batch_size=32", "model.sie_coefficient=0")


def calibrate(*words):
    return CliRunner().invoke(app, ["calibrate", *map(str, words), "--replicates", "100"])


def test_a_run_without_held_out_identities_uses_its_test_split_and_says_so(run, tmp_path):
    done = calibrate(run, "--target-fmr", 0.5, "--all-presences")
    assert done.exit_code == 0, done.stderr
    assert "its test split is used" in done.stderr
    assert "FNMR" in done.stdout
    assert f"written: {run / 'calibration.json'}" in done.stdout
    found = trireid.Calibration.load(run / "calibration.json")
    # 7 x 8 / 2 unordered pairs of subsets; r-n, r-t, n-t, r-nt, n-rt and t-rn share no block of the global feature.
    assert len(found.rates) == 22
    assert any("biased" in line for line in found.notes)
    assert (found.num_items, found.num_identities, found.exclude) == (24, 12, "camera")


def test_embeddings_and_other_data_give_the_same_rates(run, tmp_path):
    index = trireid.scan("rgbnt201", run.parent / "tree")
    rows = [",".join([*(str(each.path) for each in one.images), one.identity, one.camera]) for one in index.query]
    (tmp_path / "table.csv").write_text("\n".join(["rgb,nir,tir,id,camera", *rows]))
    done = calibrate(run, "--target-fmr", 0.5, "--data", tmp_path / "table.csv", "--out", tmp_path / "a.json", "--json")
    assert done.exit_code == 0, done.stderr
    shown = json.loads(done.stdout)
    embedder = trireid.Embedder(run, device="cpu")
    embeddings = embedder.embed(trireid.embedding.splits.record_item(record) for record in index.query)
    embeddings.save(tmp_path / "features")
    done = calibrate(tmp_path / "features.safetensors", "--target-fmr", 0.5)
    assert done.exit_code == 0, done.stderr
    one = trireid.Calibration.load(tmp_path / "a.json")
    other = trireid.Calibration.load(tmp_path / "features.calibration.json")
    other.check_model(one.fingerprint, one.feature)
    assert np.array_equal(one.rates[0].cosine, other.rates[0].cosine)
    assert shown["pairs"][0]["at"][0]["cosine"] == one.threshold(*(("rgb", "nir", "tir"),) * 2, fmr=0.5)
    assert not any("biased" in line for line in one.notes)


def test_a_run_that_held_out_identities_is_calibrated_on_them(run, tmp_path):
    tree = run.parent / "tree"
    held_out = untrained_run(tree, tmp_path / "run", "data.val_ids=10", "model.sie_coefficient=0")
    done = calibrate(held_out, "--target-fmr", 0.7, "--json")
    assert done.exit_code == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["pairs"][0]["num_identities"], shown["notes"]) == (10, [])
    assert shown["data"] == f"{tree} (held-out identities)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "0.001 cannot be calibrated with 12 identities: at least 246 identities are needed"),
        (["--target-fmr", "2"], "must lie above 0 and up to 1"),
        (["--target-fmr", "0.5", "--exclude", "all"], "allowed are camera, scene, cross_camera, none"),
        (["--target-fmr", "0.5", "data.val_ids=3"], "say which identities the run was not trained on"),
        (["--target-fmr", "0.5", "--out", "{run}/last.safetensors/y.json"], "cannot write"),
    ],
)
def test_mistakes_end_in_one_line(run, words, message):
    done = calibrate(run, *(word.format(run=run) for word in words))
    assert done.exit_code == 2
    assert message in done.stderr.splitlines()[-1]
