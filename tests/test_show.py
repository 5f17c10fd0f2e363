"""`trireid show`, `report` and `compare`: which files they write, and what they say where they cannot."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

from tiny_run import untrained_run, write_tree
from trireid.cli.app import app

pytestmark = pytest.mark.slow  # whole commands and trainings: too long in all for the fast tier


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    return untrained_run(write_tree(folder / "images", identities=3), folder / "run", "model.backbone.depth=2")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def written(result, folder):
    """Names of the files that a command wrote, which are all that it said."""
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(line.rpartition("/")[2] for line in result.stdout.splitlines()) == names
    return names


def test_patches_of_the_ids_asked_for(run_dir, tmp_path):
    result = call("show", "patches", run_dir, "--ids", "000101,000102_cam2_0_01", "--n", 1, "--out", tmp_path / "p")
    names = written(result, tmp_path / "p")
    assert names == [
        "patches_000101_cam1_0_00.png",
        "patches_000102_cam2_0_01.png",
        "slots_000101_cam1_0_00.png",
        "slots_000102_cam2_0_01.png",
    ]
    with Image.open(tmp_path / "p" / names[0]) as image:
        assert min(image.size) > 300


def test_rank_lists_of_each_kind_or_of_one_query(run_dir, tmp_path):
    result = call("show", "ranks", run_dir, "--n", 1, "--out", tmp_path / "all")
    kinds = [name.partition("_0")[0] for name in written(result, tmp_path / "all")]
    assert kinds == ["ranks_easiest", "ranks_hardest"]
    assert "there is no confidently wrong query" in result.stderr
    one = call("show", "ranks", run_dir, "--ids", "000101_cam1_0_01", "--format", "pdf", "--out", tmp_path / "one")
    assert written(one, tmp_path / "one") == ["ranks_query_000101_cam1_0_01.pdf"]
    assert (tmp_path / "one" / "ranks_query_000101_cam1_0_01.pdf").read_bytes().startswith(b"%PDF")


def test_grad_cam_explains_the_likeness_to_matches_or_the_feature_itself(run_dir, tmp_path):
    assert written(call("show", "gradcam", run_dir, "--n", 1, "--out", tmp_path / "a"), tmp_path / "a") == [
        "gradcam_000100_cam1_0_00.png"
    ]
    bare = shutil.copytree(run_dir, tmp_path / "bare")
    (bare / "features.safetensors").unlink()
    assert written(call("show", "gradcam", bare, "--n", 1, "--out", tmp_path / "b"), tmp_path / "b")
    pictures = [next((tmp_path / each).iterdir()).read_bytes() for each in "ab"]
    assert pictures[0] != pictures[1]


def test_features_in_a_plane(run_dir, tmp_path):
    result = call("show", "tsne", run_dir, "--method", "pca", "--feature", "global", "--out", tmp_path / "t")
    assert written(result, tmp_path / "t") == ["pca_global.png"]


def test_pictures_of_a_checkpoint_alone(run_dir, tmp_path):
    shutil.copy(run_dir / "last.safetensors", tmp_path / "alone.safetensors")
    result = call("show", "patches", tmp_path / "alone.safetensors", "--n", 1)
    assert len(written(result, tmp_path / "alone_pictures")) == 2
    result = call("show", "ranks", tmp_path / "alone.safetensors", "--n", 1, "--evaluate", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output


def test_pictures_of_names_that_people_have_do_not_replace_each_other(run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    content = json.loads((run / "records.json").read_text())
    names = ["张三", "李四", "$\\frac{"]
    for entry, name in zip(content["query"], names, strict=False):
        entry["name"] = name
    for entry in content["query"]:
        entry["identity"] = f"$\\undefined{entry['identity']}_$"
    (run / "records.json").write_text(json.dumps(content))
    ids = [word for name in names for word in ("--ids", name)]
    result = call("show", "ranks", run, *ids, "--top", 1, "--out", tmp_path / "ranks")
    assert len(written(result, tmp_path / "ranks")) == len(names)
    assert {"ranks_query_张三.png", "ranks_query_李四.png"} <= {path.name for path in (tmp_path / "ranks").iterdir()}
    assert "Warning" not in result.stderr
    assert written(call("show", "tsne", run, "--method", "pca", "--out", tmp_path / "t"), tmp_path / "t")


MISTAKES = [
    (("show", "ranks", "RUN", "--ids", "nobody"), "no query is called nobody"),
    (("show", "ranks", "RUN", "--feature", "tail"), "allowed are global, head, joint"),
    (("show", "gradcam", "RUN", "--after-block", "9"), "blocks 1 to 2"),
    (("show", "tsne", "RUN", "--ids", "000100", "--feature", "nir"), "allowed are global, head, joint"),
    (("show", "patches", "RUN", "data.roott=x"), "the nearest is data.root"),
    (("show", "ranks", "BARE"), "--evaluate makes them"),
    (("show", "patches", "NONE"), "not a folder and not a file"),
    (("report", "NONE"), "not a folder and not a file"),
    (("compare", "RUN"), "two runs or more"),
]


@pytest.mark.parametrize(
    ("words", "message"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_mistakes_end_in_one_line(run_dir, tmp_path, words, message):
    bare = shutil.copytree(run_dir, tmp_path / "bare")
    (bare / "features.safetensors").unlink()
    (bare / "records.json").unlink()
    places = {"RUN": run_dir, "BARE": bare, "NONE": tmp_path / "none"}
    result = call(*(places.get(word, word) for word in words))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_model_that_selects_nothing_has_no_patches_to_draw(tmp_path):
    run = untrained_run(write_tree(tmp_path / "images", identities=3), tmp_path / "run", "model.head=none")
    result = call("show", "patches", run)
    assert result.exit_code == 2
    assert "selects no patches" in result.stderr


def test_report_and_compare_say_where_the_page_is(run_dir, tmp_path):
    result = call("report", run_dir)
    assert result.stdout == f"report: {run_dir / 'report.html'}\n"
    other = shutil.copytree(run_dir, tmp_path / "other")
    result = call("compare", run_dir, other, "--out", tmp_path / "both.html")
    assert result.stdout == f"comparison: {tmp_path / 'both.html'}\n"
    assert (tmp_path / "both.html").stat().st_size > 10_000
