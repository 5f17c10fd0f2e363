"""From images to figures through the command line, and the same model in a few lines of Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import trireid
from tiny_run import tiny_config, write_tree
from trireid.cli.app import app
from trireid.config.load import dump_config
from trireid.train import evaluating


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set with one query that nobody can answer, and the settings of a run on it."""
    place = tmp_path_factory.mktemp("place")
    tree = write_tree(place / "data", identities=6)
    settings = ("data.val_ids=2", "data.batch_size=4", "train.epochs=3", "evaluate.rerank=true", "data.skip_bad=true")
    (place / "run.yaml").write_text(dump_config(tiny_config(tree, place / "run", *settings)))
    for image in (place / "data/test").glob("*/000100_cam1*"):
        image.unlink()
    return place


@pytest.fixture(scope="module")
def run(place):
    """The run folder and what the command said."""
    return place / "run", call("train", "--config", place / "run.yaml")


def test_best_is_chosen_on_held_out_identities_and_both_are_reported(run):
    folder, said = run
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["best"]["chosen_on"] == "validation"
    assert set(metrics["best"]) == {"epoch", "chosen_on", "chosen_by", "feature", "validation"}
    assert metrics["num_train_identities"] == 4
    for figures in (metrics["feature"], metrics["best"]["feature"], metrics["reranked"]["feature"]):
        assert {name: set(values) for name, values in figures.items()} == {
            name: {"mAP", "mINP", "rank1", "rank5", "rank10"} for name in ("global", "head", "joint")
        }
    for words in ("last checkpoint, test split\n", "chosen on the validation split", "re-ranked (k-reciprocal, k1 20"):
        assert words in said.stdout
    assert "no fair figure" not in said.stderr


def test_queries_without_a_match_are_counted_and_said(run):
    folder, said = run
    metrics = json.loads((folder / "metrics.json").read_text())
    # Identity 100 is left with two triplets of one camera, which must not see each other.
    assert (metrics["num_queries"], metrics["num_unmatched"]) == (22, 2)
    assert any(message.startswith("2 of 22 queries have no valid match") for message in metrics["messages"])
    assert "2 of 22 queries have no valid match" in said.stderr


def test_testing_a_run_gives_its_figures_again_and_re_ranked_ones_where_asked_for(run):
    folder, _ = run
    metrics = json.loads((folder / "metrics.json").read_text())
    plain = trireid.evaluate_checkpoint(
        folder, config=trireid.load_config(folder / "config.yaml", ["evaluate.rerank=false"])
    )
    assert plain["feature"] == metrics["feature"]
    assert "reranked" not in plain
    again = call("test", folder, "--rerank").stdout
    for figures in (metrics["feature"], metrics["reranked"]["feature"]):
        assert f"{100 * figures['joint']['mAP']:.1f}" in again
    assert "re-ranked (k-reciprocal, k1 20, k2 6, lambda 0.3)" in again
    assert "re-ranked" not in call("test", folder, "--no-rerank").stdout


def test_re_ranking_waits_for_the_final_features(place, tmp_path, monkeypatch):
    calls = []
    original = evaluating.evaluate_features

    def counted(ranking, **settings):
        calls.append(ranking.rerank)
        return original(ranking, **settings)

    monkeypatch.setattr(evaluating, "evaluate_features", counted)
    call("train", "--config", place / "run.yaml", f"output={tmp_path / 'run'}")
    assert len(calls) > 3
    assert [rerank.k1 for rerank in calls if rerank is not None] == [
        20
    ]  # three epochs and the best checkpoint were evaluated without it


def test_the_page_shows_plain_and_re_ranked_figures(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "run")
    call("report", folder)
    page = (folder / "report.html").read_text()
    assert "last, re-ranked" in page
    assert "different evaluations" not in page


def test_ten_lines_of_python(run):
    model = trireid.load_model(run[0])
    images = torch.rand(4, 3, 3, 32, 16)  # (B, M, 3, H, W)
    with torch.inference_mode():
        output = model(images, present=None, camera=None)
    assert output.features["global"].shape[0] == output.embedding.shape[0] == 4
    assert output.selection is not None
    distance = trireid.pairwise_distance(output.embedding, output.embedding)
    labels = trireid.Labels(
        torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), torch.full((4,), -1), torch.arange(4)
    )
    figures = trireid.rank_metrics(distance, labels, labels, trireid.Protocol("mine", "camera")).as_dict()
    assert set(figures) == {"mAP", "mINP", "rank1", "rank5", "rank10"}


def test_a_run_can_be_read_by_others(run):
    modes = {path.name: path.stat().st_mode & 0o777 for path in run[0].iterdir() if path.is_file()}
    assert len(set(modes.values())) == 1, modes


def test_the_run_folder_is_found_from_a_path_as_text(run):
    assert isinstance(trireid.load_model(str(Path(run[0]))), torch.nn.Module)
