"""`trireid gallery`: what the commands print, and that mistakes are one line and exit code 2."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from gallery_cases import embed, model_of
from trireid.cli.app import app


def run(*words, code=0):
    done = CliRunner().invoke(app, ["gallery", *map(str, words)])
    assert done.exit_code == code, done.output + done.stderr
    return done.stdout if code == 0 else done.stderr


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
        "items": 3,
    }
    assert "replaced 3" in run("add", things, seen)
    assert "[red]b" in run("list", things)
    assert "\u202e" not in run("list", things)
    found = json.loads(run("query", things, "--key", "a", "--top", 1, "--identity", "x", "--threshold", 2, "--json"))
    assert (found[0]["matches"][0]["key"], found[0]["known"]) == ("[red]b", True)
    assert "UNKNOWN" in run("query", things, "--key", "a", "--threshold", 0)
    assert "labelled 1" in run("label", things, "y", "a")
    assert json.loads(run("list", things, "--identity", "y", "--json"))["items"][0]["key"] == "a"
    assert "unlabelled 1" in run("unlabel", things, "a")
    assert json.loads(run("copy", things, tmp_path / "copy", "--json"))["items"] == 3
    assert "removed 3" in run("remove", things, "--camera", "gate")
    assert json.loads(run("info", tmp_path / "copy", "--json"))["items"] == 3


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
        (("remove", things), "empty filter"),
        (("copy", things, tmp_path / "copy"), "exists already"),
        (("calibrate", things, gone), "gone"),
    ):
        line = run(*words, code=2)
        assert said in line
        assert len(run("list", things, "--json").splitlines()) == 1  # nothing is broken or left locked
