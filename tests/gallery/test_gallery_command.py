"""`trireid gallery`: what the commands print, and that mistakes are one line and exit code 2."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from gallery_cases import calibrated, embed, model_of
from trireid.cli.app import app


def run(*words, code=0):
    done = CliRunner().invoke(app, ["gallery", *map(str, words)])
    assert done.exit_code == code, done.output + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.slow
def test_a_gallery_is_filled_searched_changed_and_copied_by_commands(tmp_path):
    things, seen = tmp_path / "things", tmp_path / "seen"
    vectors = np.random.default_rng(0).standard_normal((3, 12))
    keys = ["a", "[red]b", "c\u202e"]  # markup, and a letter that turns the direction of a terminal
    embed(model_of(), vectors, np.ones((3, 3)), key=keys, identity=["x", "x", None], camera="gate").save(seen)

    assert "no gallery in" in run("list", things, code=2)
    assert json.loads(run("add", things, seen, "--create", "--json")) == {
        "added": 3,
        "replaced": 0,
        "unrelated": None,
        "left_out": 0,
        "items": 3,
    }
    assert "replaced 3" in run("add", things, seen, "--create")
    assert "[red]b" in run("list", things)
    assert "\u202e" not in run("list", things)
    found = json.loads(run("query", things, "--key", "a", "--top", 1, "--identity", "x", "--threshold", 2, "--json"))
    assert (found[0]["matches"][0]["key"], found[0]["known"]) == ("[red]b", True)
    assert "UNKNOWN (* largest distance 0.0000)" in run("query", things, "--key", "a", "--threshold", 0)
    assert "labelled 1" in run("label", things, "y", "a")
    assert json.loads(run("list", things, "--identity", "y", "--json"))["items"][0]["key"] == "a"
    assert "unlabelled 1" in run("unlabel", things, "a")
    assert json.loads(run("copy", things, tmp_path / "copy", "--json"))["items"] == 3
    assert json.loads(run("label", things, "z", "a", "--json")) == {"labelled": 1}
    assert json.loads(run("unlabel", things, "a", "--json")) == {"unlabelled": 1}
    assert "no item 'nobody'" in run("remove", things, "--key", "nobody", code=2)
    assert json.loads(run("remove", things, "--key", "a", "--json")) == {"removed": 1, "items": 2}
    assert "removed 2" in run("remove", things, "--camera", "gate")
    assert json.loads(run("info", tmp_path / "copy", "--json"))["items"] == 3


@pytest.mark.slow
def test_a_rate_that_is_only_a_bound_is_shown_as_one_and_what_is_not_calibrated_as_open(tmp_path):
    things, seen, rates = tmp_path / "things", tmp_path / "seen", tmp_path / "calibration.json"
    near = np.random.default_rng(0).standard_normal((1, 12)) + np.array([[0.0], [0.1], [0.2]])
    embed(model_of(), near, [[1, 1, 1], [1, 1, 1], [1, 1, 0]], key=["a", "b", "c"]).save(seen)
    calibrated(model_of()).save(rates)
    made = json.loads(run("create", things, seen, "--root", tmp_path, "--json"))
    assert (made["root"], made["items"], made["model"]["width"]) == (str(tmp_path), 0, 12)
    run("add", things, seen, "--create", "--root", tmp_path)  # the same root is no mistake
    done = json.loads(run("calibrate", things, rates, "--json"))
    assert done == {"pairs": [{"first": "rnt", "second": "rnt", "lowest_fmr": pytest.approx(0.00618, abs=1e-5)}]}
    table = run("query", things, "--key", "a")
    assert "<= 0.01" in table
    assert "not decided" not in table
    assert "not decided" in run("query", things, "--key", "c", "--fmr", 0.05)
    found = json.loads(run("query", things, "--key", "a", "--json"))[0]["matches"]
    assert [(match["false_match_rate"], match["rate_is_bound"]) for match in found] == [(0.01, True), (None, False)]
    assert json.loads(run("measure-unrelated", things, "--json"))["before"] is None


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path):
    things, seen, gone = tmp_path / "things", tmp_path / "seen", tmp_path / "gone"
    embed(model_of(), np.ones((1, 12)), np.ones((1, 3)), key=["a"]).save(seen)
    run("add", things, seen, "--create")
    run("copy", things, tmp_path / "copy")
    for words, said in (
        (("query", things, "--key", "a", "--top", "0"), "top must be"),
        (("query", things, "--key", "a", "--colour", "red"), "No such option"),
        (("query", things, seen, "--key", "a"), "give one of"),
        (("query", things, gone), "gone"),
        (("query", things, seen, "--fmr", "0.1"), "needs a calibration"),
        (("list", things, "--after", "noon"), "seconds since 1970"),
        (("list", things, "--presence", "red"), "rgb, nir, tir"),
        (("query", things, seen, "--query-camera", "1"), "are for a query by --rgb"),
        (("query", things, seen, "--skip-bad"), "give it with --run"),
        (("add", things, seen, "--create", "--root", tmp_path), "has its own (none)"),
        (("add", things, seen, "--create", "--partial"), "made without"),
        (("add", gone, seen), "there is no gallery in"),
        (("label", things, "", "a"), "with unlabel"),
        (("remove", things), "empty filter"),
        (("copy", things, tmp_path / "copy"), "exists already"),
        (("calibrate", things, gone), "gone"),
    ):
        line = run(*words, code=2)
        assert said in line
        assert len(run("list", things, "--json").splitlines()) == 1  # nothing is broken or left locked
