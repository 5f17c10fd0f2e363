from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

from tiny_run import untrained_run, write_tree
from trireid.errors import InputError
from trireid.evaluation.feature_files import load_features, save_features
from trireid.evaluation.ranking import Ranking
from trireid.report.compare import write_comparison
from trireid.report.page import write_report
from trireid.report.queries import differing_queries, query_precision, rank_saved
from trireid.report.run_folder import read_run
from trireid.types import Protocol


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same data ranked by two models of different heads; the features of the second are made to differ."""
    folder = tmp_path_factory.mktemp("compare")
    root = write_tree(folder / "images", identities=4)
    first = untrained_run(root, folder / "first", "train.epochs=3")
    second = untrained_run(root, folder / "second", "train.epochs=4")
    saved = load_features(second)
    joint = saved.query.features.features
    noise = torch.randn(joint["global"].shape, generator=torch.Generator().manual_seed(0))
    joint["global"] = joint["global"] + noise
    save_features(second, Ranking(saved.query, saved.query, saved.protocol))
    return first, second


def words_of(page):
    return " ".join(
        re.sub(r"<style.*?</style>|<[^>]+>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL).split()
    )


def test_queries_are_those_of_the_widest_difference(runs):
    ranked = {str(path): rank_saved(read_run(path).saved) for path in runs}
    shown = differing_queries(ranked, num_queries=3)
    first, second = (query_precision(each) for each in ranked.values())
    spread = {name: abs(first[name] - second[name]) for name in first}
    assert shown[0] == min(spread, key=lambda name: (-spread[name], name))
    assert len({name.split("_")[0] for name in shown}) == len(shown)
    assert all(spread[name] > 0 for name in shown)


def test_the_page_sets_figures_settings_and_lists_side_by_side(runs, tmp_path):
    page = write_comparison(runs, tmp_path / "compare.html")
    text = words_of(page)
    assert "train.epochs 3 4" in text
    assert "data.batch_size" not in text  # alike in both
    precision = [query_precision(rank_saved(read_run(path).saved)) for path in runs]
    better = sum(precision[0][name] > precision[1][name] for name in precision[0])
    worse = sum(precision[0][name] < precision[1][name] for name in precision[0])
    assert f"first second {better} {worse} {len(precision[0]) - better - worse}" in text
    assert text.count("average precision") >= 4
    assert not re.search(r"<script|https?://", page.read_text())


def test_alike_runs_differ_in_no_query(runs, tmp_path):
    twin = shutil.copytree(runs[0], tmp_path / "twin")
    text = words_of(write_comparison([runs[0], twin], tmp_path / "compare.html"))
    assert "rank every common query alike" in text


def test_one_run_or_one_given_twice_is_an_error(runs, tmp_path):
    with pytest.raises(InputError, match="two runs or more, given 1"):
        write_comparison(runs[:1], tmp_path / "compare.html")
    with pytest.raises(InputError, match="given twice"):
        write_comparison([runs[0], runs[0]], tmp_path / "compare.html")


def test_a_run_without_features_leaves_the_rest(runs, tmp_path):
    bare = shutil.copytree(runs[1], tmp_path / "bare")
    (bare / "features.safetensors").unlink()
    (bare / "records.json").unlink()
    text = words_of(write_comparison([runs[0], bare], tmp_path / "compare.html"))
    assert "bare: features.safetensors and records.json are not there" in text
    assert "Fewer than two runs" in text


def test_checkpoints_alone_are_compared_when_evaluated(runs, tmp_path):
    files = [tmp_path / f"{run.name}.safetensors" for run in runs]
    for run, file in zip(runs, files, strict=True):
        shutil.copy(run / "last.safetensors", file)
    text = words_of(write_comparison(files, tmp_path / "compare.html", evaluate=True))
    assert "joint first.safetensors" in text
    assert "head second.safetensors" in text


def changed(run, to, change):
    """A copy of a run whose saved features are of something else."""
    saved = load_features(shutil.copytree(run, to))
    save_features(to, change(saved))
    return to


def renamed(saved):
    records = tuple(replace(record, identity=f"other{record.identity}") for record in saved.query.records)
    side = replace(saved.query, records=records)
    return Ranking(side, side, saved.protocol)


def other_images(saved):
    def moved(source):
        (source.path.parent / "other").mkdir(exist_ok=True)
        path = shutil.copy(source.path, source.path.parent / "other" / source.path.name)
        path.write_bytes(path.read_bytes() + b"other")
        return replace(source, path=path)

    records = tuple(replace(each, images=tuple(map(moved, each.images))) for each in saved.query.records)
    side = replace(saved.query, records=records)
    return Ranking(side, side, saved.protocol)


OTHER_DATA = {
    "people": (renamed, "their queries (16 and 16 items, 0 of them in both)"),
    "rule": (lambda saved: replace(saved, protocol=Protocol("plain", "none")), "the rule of the ranking"),
    "images": (other_images, "their images, which have the same names but other content"),
}


@pytest.mark.parametrize("case", OTHER_DATA)
def test_runs_on_other_data_are_not_compared_and_told_why(runs, tmp_path, caplog, case):
    change, why = OTHER_DATA[case]
    other = changed(runs[1], tmp_path / "other", change)
    page = write_comparison([runs[0], other], tmp_path / "compare.html")
    text = words_of(page)
    assert f"first and other differ in {why}" in text
    assert "train.epochs 3 4" in text  # settings are compared all the same
    assert not [words for words in ("average precision", "Equal error", "Metrics", "CMC") if words in text]
    assert 'class="number best"' not in page.read_text()
    assert "cannot be compared" in caplog.text


def test_runs_that_compare_items_in_different_ways_say_so(runs, tmp_path):
    fused = changed(runs[0], tmp_path / "fused", lambda saved: replace(saved, adaptive_fusion=2.0))
    text = words_of(write_comparison([runs[0], fused], tmp_path / "compare.html"))
    how = "first: whole features; fused: adaptive fusion, power 2."
    assert f"Metrics The runs compare items in different ways: {how}" in text
    assert "in different ways" not in words_of(write_comparison(runs, tmp_path / "alike.html"))
    alone = words_of(write_report(fused))
    assert "Galleries and services compare whole features, for which this threshold does not hold." in alone


def test_runs_without_features_are_held_apart_by_their_counts(runs, tmp_path):
    folders = []
    for count in (16, 20):
        folder = shutil.copytree(runs[0], tmp_path / f"run{count}")
        (folder / "records.json").unlink()
        figures = {"joint": {"mAP": 0.5, "rank1": 0.5}}
        (folder / "metrics.json").write_text(json.dumps({"feature": figures, "num_queries": count}))
        folders.append(folder)
    page = write_comparison(folders, tmp_path / "compare.html")
    assert "differ in queries (16 and 20)" in words_of(page)
    assert 'class="number best"' not in page.read_text()
