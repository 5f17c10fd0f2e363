from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from trireid.data.records import ImageSource, Record
from trireid.errors import RunError
from trireid.evaluation.evaluate import evaluate_features
from trireid.evaluation.feature_files import load_features, save_features
from trireid.evaluation.features import FeatureSet
from trireid.evaluation.metrics import pairwise_distance
from trireid.evaluation.ranking import Ranking, Side
from trireid.report.page import write_report
from trireid.report.queries import rank_saved, shown_queries
from trireid.report.run_folder import read_run
from trireid.types import Labels, Protocol

from reference_ranking import literal_metrics, ranked_columns

NUM_ITEMS = 24


def make_side(folder):
    generator = torch.Generator().manual_seed(0)
    position = torch.arange(NUM_ITEMS)
    identity, camera = position // 4, position % 4 // 2
    centres = torch.randn(6, 4, generator=generator)
    features = centres[identity] + 0.9 * torch.randn(NUM_ITEMS, 4, generator=generator)
    folder.mkdir()
    records = []
    for i in range(NUM_ITEMS):
        sources = []
        for name, color in (("rgb", (9 * i, 80, 0)), ("nir", (9 * i,) * 3), ("tir", (200, 9 * i, 90))):
            Image.new("RGB", (6, 12), color).save(folder / f"{i}_{name}.png")
            sources.append(ImageSource(folder / f"{i}_{name}.png"))
        images = (sources[0], None, sources[2]) if i == 5 else tuple(sources)
        records.append(Record(f"item{i:02d}", images, identity=str(int(identity[i])), camera=str(int(camera[i]))))
    labels = Labels(identity, camera, torch.full((NUM_ITEMS,), -1), position)
    parts = {"global": features, "head": features.square(), "joint": torch.cat([features, features.square()], dim=1)}
    return Side(FeatureSet(parts, torch.ones(NUM_ITEMS, 3, dtype=torch.bool), position), labels, tuple(records))


@pytest.fixture(scope="module")
def side(tmp_path_factory):
    return make_side(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def run_dir(tmp_path, side):
    return make_run(tmp_path / "demo_run", side)


@pytest.fixture(scope="module")
def report(tmp_path_factory, side):
    """The page of a run that tests only read."""
    return write_report(make_run(tmp_path_factory.mktemp("read") / "demo_run", side))


def make_run(path, side):
    path.mkdir()
    saved = Ranking(side, side, Protocol("cross-camera", "camera"))
    save_features(path, saved)
    result = evaluate_features(saved)
    untrained = {"joint": {"mAP": 0.125, "mINP": 0.1, "rank1": 0.2, "rank5": 0.3, "rank10": 0.4}}
    metrics = {
        "feature": result.metrics,
        "best": {"epoch": 2, "chosen_on": "test", "feature": result.metrics},
        "untrained": {"feature": untrained},
        "num_queries": NUM_ITEMS,
        "num_unmatched": 0,
    }
    (path / "metrics.json").write_text(json.dumps(metrics))
    (path / "config.yaml").write_text("train:\n  epochs: 2  # <script>\n")
    (path / "environment.json").write_text(
        json.dumps(
            {
                "torch": "2.6.0",
                "device": {"name": "cpu"},
                "command": ["/some/bin/trireid", "train", "--config", "a b.yaml"],
            }
        )
    )
    lines = [{"epoch": e, "loss": {"total": 3.0 / e}, "lr": {"backbone": 1e-4}} for e in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Page(HTMLParser):
    """What a reader of the page meets: rank lists, images, text."""

    def __init__(self, text):
        super().__init__()
        self.lists, self.images, self.words, self.links, self.drawings = [], [], [], [], []
        self.kind = None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "div" and attributes.get("class") == "list":
            self.lists.append({"query": attributes["aria-label"].removeprefix("Rank list of "), "entries": []})
        elif tag == "figure":
            self.kind = attributes["class"].split()[-1]
        elif tag == "svg":
            self.drawings.append(attributes.get("aria-label", ""))
        elif tag == "img":
            self.images.append(attributes)
            if self.kind in ("right", "wrong"):
                self.lists[-1]["entries"].append([self.kind, attributes["alt"], ""])
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag == "figure":
            self.kind = None

    def handle_data(self, data):
        self.words.append(data)
        if self.kind in ("right", "wrong") and data.strip()[:1] in ("✓", "✗"):
            self.lists[-1]["entries"][-1][2] = data.strip()[0]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_title_says_what_was_trained_on_what(run_dir):
    (run_dir / "config.yaml").write_text("data: {root: sets/my_cars, format: csv}\nmodel: {head: hdm_atmoe}\n")
    text = write_report(run_dir).read_text(encoding="utf-8")
    what = "demo_run: HDM and ATMoE (DeMo) on clip_vit_b16, trained on my_cars (csv)"
    assert f"<h1>{what}</h1>" in text
    assert f"<title>{what} · trireid</title>" in text


def test_a_list_says_how_many_right_items_its_places_hold(report):
    found = re.findall(r"precision ([\d.]+) %, (\d) of (\d) right items in the first 8 places", read(report).text)
    assert len(found) >= 6
    # Two of the four items of an identity are of the camera of the query, which the protocol hides.
    assert {right for _, _, right in found} == {"2"}
    assert all(shown == "2" for precision, shown, _ in found if precision == "100.0")


def plain(labels):
    return {name: value.tolist() for name, value in vars(labels).items()}


def test_marks_and_order_are_those_of_the_literal_ranking(report, side):
    page = read(report)
    joint = torch.nn.functional.normalize(side.features.features["joint"], dim=-1)
    distance = pairwise_distance(joint, joint).tolist()
    names = [record.name for record in side.records]
    assert 6 <= len(page.lists) <= 9
    kinds = set()
    for shown in page.lists:
        row = names.index(shown["query"])
        columns = ranked_columns(distance, plain(side.labels), plain(side.labels), row, "camera")[:8]
        assert len(shown["entries"]) == 8
        for column, (kind, alt, sign) in zip(columns, shown["entries"], strict=True):
            right = bool(side.labels.identity[column] == side.labels.identity[row])
            assert kind == ("right" if right else "wrong")
            assert sign == ("✓" if right else "✗")
            assert names[column] in alt
            assert f", {kind}:" in alt
            kinds.add(kind)
    assert kinds == {"right", "wrong"}


def test_chosen_queries_are_what_they_are_called(run_dir, side):
    queries = shown_queries(rank_saved(load_features(run_dir)), num_queries=3)
    joint = torch.nn.functional.normalize(side.features.features["joint"], dim=-1)
    distance = pairwise_distance(joint, joint).tolist()
    labels = plain(side.labels)
    precision = literal_metrics(distance, labels, labels, "camera", 1)["average_precision"]
    names = [record.name for record in side.records]
    rows = {reason: [names.index(query.record.name) for query in shown] for reason, shown in queries.items()}
    flat = [row for shown in rows.values() for row in shown]
    assert len(flat) == len(set(flat))
    assert precision[rows["easiest"][0]] == pytest.approx(max(precision))
    others = [p for row, p in enumerate(precision) if row not in rows["confidently wrong"]]
    assert precision[rows["hardest"][0]] == pytest.approx(min(others))
    for row in rows["confidently wrong"]:
        first = ranked_columns(distance, labels, labels, row, "camera")[0]
        assert labels["identity"][first] != labels["identity"][row]
    for shown in rows.values():
        assert len({labels["identity"][row] for row in shown}) == len(shown)
    for reason, shown in queries.items():
        for query, row in zip(shown, rows[reason], strict=True):
            assert query.average_precision == pytest.approx(precision[row])


def test_figures_counts_and_settings_are_there(report):
    metrics = json.loads((report.parent / "metrics.json").read_text())
    assert report.name == "report.html"
    page = read(report)
    joint = metrics["feature"]["joint"]
    assert f"mAP {100 * joint['mAP']:.1f} %" in page.text
    assert "untrained: mAP 12.5 %" in page.text
    assert page.text.count(f"{100 * metrics['feature']['head']['mINP']:.1f}") >= 2  # last and best
    assert "best (epoch 2, chosen on test)" in page.text
    assert "chosen on the test set" in page.text
    assert f"queries: {NUM_ITEMS}" in page.text
    assert "left out): 0" in page.text
    assert "trireid train --config 'a b.yaml'" in page.text
    assert "device.name cpu" in page.text
    assert "epochs: 2  # <script>" in "".join(page.words)  # escaped, so it arrives as text
    assert "train.epochs 2 50" in page.text  # what differs from the defaults
    assert "No maps of kept patches" in page.text  # the weights of this run are not there
    assert "What is missing" not in page.text


def test_the_page_needs_nothing_else(report):
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.links
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<script|https?://", text)
    assert len(page.drawings) == 6  # loss, rate, mAP, rank-1, CMC, distances
    assert all(page.drawings)
    assert all(image["alt"] for image in page.images)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert len(text) < 15_000_000
    assert not list(report.parent.glob("*.part")) + list(report.parent.glob(".*.tmp"))


PARTS = ("features.safetensors", "records.json", "metrics.json", "metrics.jsonl", "config.yaml", "environment.json")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("damage", ["gone", "broken"])
def test_a_missing_or_damaged_part_is_a_note(run_dir, name, damage):
    if damage == "gone":
        (run_dir / name).unlink()
    else:
        (run_dir / name).write_bytes(b'{"a": \xff')
    (note,) = read_run(run_dir).notes
    assert name in note


def test_all_but_one_part_damaged_still_makes_a_page(run_dir):
    for name in set(PARTS) - {"metrics.jsonl"}:
        (run_dir / name).write_bytes(b'{"a": \xff')
    (run_dir / "metrics.jsonl").write_text('{"epoch": 1, "loss": {"total": 2.0}}\n{"epoch": 2, "lo')
    page = read(write_report(run_dir))
    for name in PARTS:
        assert name in page.text
    assert "No metrics" in page.text
    assert "metrics.jsonl line 2 is damaged" in page.text
    assert len(page.drawings) == 4  # the curves of the line that could be read


def test_without_features_and_history_the_page_still_stands(run_dir):
    for name in ("features.safetensors", "records.json", "metrics.jsonl"):
        (run_dir / name).unlink()
    page = read(write_report(run_dir))
    assert "No rank lists" in page.text
    assert "No curves" in page.text
    assert "no rank lists and no CMC curve" in page.text


def test_moved_images_are_boxes(run_dir):
    text = (run_dir / "records.json").read_text().replace("_rgb.png", "_lost.png")
    (run_dir / "records.json").write_text(text)
    assert len(read(write_report(run_dir)).lists) >= 6


def test_figures_of_another_evaluation_are_said(run_dir):
    metrics = json.loads((run_dir / "metrics.json").read_text())
    metrics["feature"]["joint"]["mAP"] = 0.999
    (run_dir / "metrics.json").write_text(json.dumps(metrics))
    assert "they are of different evaluations" in read(write_report(run_dir)).text


def test_an_unmatched_set_is_said(run_dir, side):
    alone = Labels(torch.arange(NUM_ITEMS), side.labels.camera, side.labels.scene, side.labels.item)
    lonely = Side(side.features, alone, side.records)
    save_features(run_dir, Ranking(lonely, lonely, Protocol("p")))
    assert "cannot be ranked" in read(write_report(run_dir)).text


def test_the_threshold_is_that_of_the_distances(run_dir, side):
    page = read(write_report(run_dir))
    joint = torch.nn.functional.normalize(side.features.features["joint"], dim=-1)
    distance, labels = pairwise_distance(joint, joint), side.labels
    seen = ~(torch.eye(NUM_ITEMS, dtype=torch.bool))
    alike = labels.identity[:, None] == labels.identity
    same = distance[alike & seen & (labels.camera[:, None] != labels.camera)]
    different = distance[~alike]
    threshold = float(re.search(r"distance of (\S+) for the same", page.text)[1])
    refused, accepted = (same > threshold).double().mean(), (different <= threshold).double().mean()
    assert abs(refused - accepted) < 0.05
    assert f"{len(same)} distances of the same identity and {len(different)} of different" in " ".join(page.drawings)


def test_a_gallery_of_one_identity_has_no_threshold_and_the_rest_is_drawn(run_dir, side):
    one = Labels(torch.zeros_like(side.labels.identity), side.labels.camera, side.labels.scene, side.labels.item)
    alone = Side(side.features, one, side.records)
    save_features(run_dir, Ranking(alone, alone, Protocol("p")))
    page = read(write_report(run_dir))
    assert re.search(r"No threshold: .* given \d+ and 0", page.text)
    assert len(page.drawings) == 6
    assert page.lists
    assert "No query is of this kind" in page.text  # none is wrong


def test_hostile_names_are_text(run_dir):
    text = (run_dir / "records.json").read_text().replace('"item', '"<b onload=x>&item')
    (run_dir / "records.json").write_text(text)
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "<b onload" not in page
    assert "&lt;b onload=x&gt;&amp;item" in page


def test_settings_of_another_version_are_shown_as_they_are(run_dir):
    (run_dir / "config.yaml").write_text("train:\n  epochz: 2\n")
    page = read(write_report(run_dir))
    assert "settings that this version does not know" in page.text
    assert "epochz: 2" in "".join(page.words)


def test_no_folder_and_no_run_are_errors(tmp_path):
    with pytest.raises(RunError, match="not a folder and not a file"):
        write_report(tmp_path / "none")
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path)
