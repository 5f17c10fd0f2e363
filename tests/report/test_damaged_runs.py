"""A run folder of which a part is damaged: a note on the page, one line elsewhere, and the rest is shown."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tiny_run import untrained_run, write_tree
from trireid.cli.app import app
from trireid.embedding.identity import fingerprint
from trireid.errors import RunError
from trireid.evaluation.calibration import Calibration
from trireid.report.page import write_report
from trireid.report.run_folder import read_run
from trireid.train.checkpoint import load_checkpoint
from trireid.train.runs import read_epochs, read_metrics
from trireid.train.state import TrainingState, load_state, save_state

SCORES = {"mAP": 0.5, "mINP": 0.4, "rank1": 0.6, "rank5": 0.7, "rank10": 0.8}
METRICS = {
    "feature": {"joint": SCORES},
    "best": {"epoch": 1, "chosen_on": "test", "feature": {"joint": SCORES}},
    "untrained": {"feature": {"joint": {**SCORES, "mAP": 0.125}}},
    "messages": ["2 of 24 queries have no valid match"],
    "new_in_a_later_version": [1, {"a": None}],
}
LINES = [{"epoch": 1, "loss": {"total": 2.0}, "lr": {"head": 0.1}}, {"epoch": 2, "loss": {"total": 1.0}}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    run = untrained_run(write_tree(folder / "images", identities=3), folder / "run", "model.head=none")
    (run / "metrics.json").write_text(json.dumps(METRICS))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (run / "environment.json").write_text(json.dumps({"command": ["trireid", "train"], "torch": "2.6.0"}))
    return run


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def change(path, entry, value):
    """Put a value into a JSON file, at a dotted place."""
    content = json.loads(path.read_text())
    *parents, last = entry.split(".")
    place = content
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    place[int(last) if isinstance(place, list) else last] = value
    path.write_text(json.dumps(content))


NESTED = '{"a":' * 100_000 + "1" + "}" * 100_000
WHOLE_FILES = [
    ("metrics.json", b"", "metrics.json is damaged"),
    ("metrics.json", b"[]", "metrics.json is damaged: it holds [] where an object should be"),
    ("metrics.json", b"\xff\xfe", "metrics.json cannot be read"),
    ("environment.json", NESTED.encode(), "environment.json is damaged: it is nested more than 32 deep"),
    ("environment.json", b'{"a":' * 40 + b"1" + b"}" * 40, "environment.json is damaged: it is nested more than 32"),
    ("metrics.jsonl", b"\xff\n", "metrics.jsonl cannot be read"),
    ("metrics.jsonl", b'{"epoch": 1}\n{"epoch": true}\n', "metrics.jsonl line 2 is damaged and left out: epoch"),
    ("metrics.jsonl", b"5\n" * 9, "metrics.jsonl has 6 more damaged lines"),
    ("metrics.jsonl", b'{"epoch": ' + b"9" * 5000 + b"}\n", "metrics.jsonl line 1 is damaged and left out"),
    ("records.json", NESTED.encode(), "nested more than 32 deep"),
    ("records.json", b"null", "is damaged (it holds None where an object should be)"),
]


@pytest.mark.parametrize(("name", "content", "note"), WHOLE_FILES)
def test_a_damaged_file_is_a_note(run, name, content, note):
    (run / name).write_bytes(content)
    assert any(note in each for each in read_run(run).notes), read_run(run).notes


ENTRIES = [
    ("metrics.json", "feature", 5, "feature: input should be a valid dictionary, given 5"),
    ("metrics.json", "feature.joint.mAP", float("nan"), "feature.joint.mAP: input should be"),
    ("metrics.json", "feature.joint.mAP", 10**400, "feature.joint.mAP: input should be"),
    ("metrics.json", "feature.joint", None, "feature.joint: input should be a valid dictionary, given None"),
    ("metrics.json", "best", {"epoch": 1}, "best.feature: field required, and 1 more faults"),
    ("metrics.json", "messages", "x" * 10_000, "messages: input should be a valid list"),
    ("metrics.json", "untrained.feature", [1], "untrained.feature: input should be a valid dictionary"),
    ("environment.json", "resumed", "x", "resumed: input should be a valid list"),
    ("environment.json", "command", {"a": 1}, "command"),
    ("records.json", "query.0.images", [None], "query.0.images"),
    ("records.json", "query.0.name", None, "query.0.name"),
    ("records.json", "query.1.camera", 5, "query.1.camera"),
    ("records.json", "protocol", {"name": "x", "exclude": "y"}, "protocol.exclude"),
    ("records.json", "normalise", "yes", "normalise"),
    ("records.json", "rerank", {"k1": 10**12, "k2": 1, "lambda_value": 0.3}, "rerank.k1"),
    ("records.json", "blocks", {"global": [[7]]}, "blocks.global.0.0"),
    ("records.json", "blocks", {"global": [[0]] * 7}, "into which a feature of 48 does not divide"),
    ("records.json", "query.0.images.0", {"path": "a\0b", "columns": None}, "is no path"),
    ("records.json", "query.0.images.0", {"path": "a", "columns": [5, 2]}, "columns must be"),
]


@pytest.mark.parametrize(("name", "entry", "value", "note"), ENTRIES, ids=lambda value: str(value)[:30])
def test_a_damaged_entry_is_a_note_and_the_rest_is_kept(run, name, entry, value, note):
    change(run / name, entry, value)
    found = read_run(run)
    assert sum(note in each for each in found.notes) == 1, found.notes
    assert all(len(each) < 500 and each.isprintable() for each in found.notes)
    if name == "metrics.json":
        assert found.metrics["new_in_a_later_version"] == [1, {"a": None}]
        kept = METRICS.keys() - {entry.partition(".")[0]}
        assert {key: found.metrics[key] for key in kept} == {key: METRICS[key] for key in kept}
    if name == "records.json":
        assert found.saved is None
    assert [line["epoch"] for line in found.history] == [1, 2]


TENSORS = [
    ("query/label/camera", lambda tensor: tensor[:-1].clone(), "has 11 rows for 12 records"),
    ("query/label/identity", lambda tensor: tensor.double(), "it must be torch.int64 (n)"),
    ("query/feature/global", lambda tensor: tensor.flatten().clone(), "it must be torch.float32 (n, D)"),
    ("query/feature/global", lambda tensor: tensor.half(), "it must be torch.float32 (n, D)"),
    ("query/present", lambda tensor: tensor[:, :2].clone(), "it must be torch.bool (n, 3)"),
]


@pytest.mark.parametrize(("name", "change_tensor", "note"), TENSORS)
def test_damaged_tensors_are_a_note(run, name, change_tensor, note):
    tensors = load_file(run / "features.safetensors")
    save_file(tensors | {name: change_tensor(tensors[name])}, run / "features.safetensors")
    found = read_run(run)
    assert found.saved is None
    assert [note in each for each in found.notes] == [True], found.notes


def test_a_page_of_a_run_that_is_damaged_all_over(run):
    (run / "metrics.jsonl").write_text(
        '{"epoch": 1, "loss": {"total": 1e99}, "lr": 5}\n{"epoch": 2, "lr": {"a": -1}}\n'
    )
    change(run / "metrics.json", "best", 5)
    (run / "records.json").write_text("[")
    (run / "environment.json").unlink()
    (run / "environment.json").mkdir()
    text = write_report(run).read_text(encoding="utf-8")
    for note in ("metrics.json is damaged, a part", "line 1 is damaged, a part", "records.json in", "Is a directory"):
        assert note in text
    assert "mAP 50.0 %" in text


def test_readers_that_need_the_whole_file_say_one_line(run, tmp_path):
    change(run / "metrics.json", "best", 5)
    with pytest.raises(RunError, match=r"metrics.json cannot be read \(best: .*given 5\): delete it and resume"):
        read_metrics(run)
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2, "loss": 3}\n')
    with pytest.raises(RunError, match="line 2: loss: .*given 3"):
        read_epochs(run)
    change(run / "records.json", "query", [])
    result = CliRunner().invoke(app, ["show", "ranks", str(run), "--out", str(tmp_path / "none")])
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (2, 1), result.output
    assert "damaged" in result.stderr
    assert not (tmp_path / "none").exists()


STATES = [("epoch", []), ("epoch", True), ("model", None), ("optimizer", -1), ("seconds", "x"), ("untrained", {"a": 1})]


@pytest.mark.parametrize(("part", "value"), STATES, ids=str)
def test_a_state_of_other_types_is_one_line(tmp_path, part, value):
    state = {"epoch": 1, "model": {}, "optimizer": {"param_groups": [], "state": {}}, "scaler": {}, "label_map": {}}
    state |= {"seconds": 1.0, "untrained": {}}
    save_state(tmp_path / "state.pt", TrainingState(**state))
    assert load_state(tmp_path / "state.pt").epoch == 1
    save_state(tmp_path / "state.pt", TrainingState(**state | {part: value}))
    with pytest.raises(RunError, match=r"state.pt is damaged .*(epoch|model|optimizer|seconds|a: input)"):
        load_state(tmp_path / "state.pt")


def test_a_calibration_of_other_weights_is_left_out(tmp_path):
    root = write_tree(tmp_path / "data", identities=2, per_camera=1)
    run = untrained_run(root, tmp_path / "run")
    own = Calibration(fingerprint(load_checkpoint(run)), "joint", rates=())
    own.save(run / "calibration.json")
    assert read_run(run).calibration == own
    replace(own, fingerprint="0" * 64).save(run / "calibration.json")
    read = read_run(run)
    assert read.calibration is None
    (note,) = [each for each in read.notes if "calibration.json" in each]
    assert "other weights" in note
    assert "trireid calibrate" in note
