"""The scripts and the notebook of `examples/` run."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from tiny_run import tiny_config, write_tree
from trireid.train.loop import train

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOK = EXAMPLES / "first_look.ipynb"


def run_example(name, *arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The run of the demo, tiny, where the notebook looks for it."""
    folder = tmp_path_factory.mktemp("examples")
    run = folder / "runs/demo/run"
    train(tiny_config(write_tree(folder / "images"), run, "model.head=sdtps"), progress=False)
    return run


def code_cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_a_head_of_ones_own_learns(monkeypatch, capsys):
    run_example("add_a_head.py", monkeypatch=monkeypatch)
    *steps, last = capsys.readouterr().out.splitlines()
    losses = [float(line.rpartition(" ")[2]) for line in steps]
    assert losses[-1] < losses[0]
    assert "head feature (16, " in last


@pytest.mark.slow
def test_training_on_a_table_prints_its_metrics(monkeypatch, capsys, tmp_path):
    run_example("train_on_csv.py", "--out", tmp_path / "made", "--epochs", 2, monkeypatch=monkeypatch)
    out = tmp_path / "again"
    run_example("train_on_csv.py", tmp_path / "made/table.csv", "--out", out, "--epochs", 1, monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    assert shown.count("joint   mAP 0.") == 2
    assert (out / "run" / "metrics.json").is_file()


@pytest.mark.slow
def test_neighbours_are_printed_for_each_query(finished_run, monkeypatch, capsys):
    run_example("embed_and_search.py", finished_run, "--queries", 2, "--top", 3, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("    ") for line in lines] == [False, True, True, True] * 2
    assert all("(identity " in line for line in lines)


def test_the_notebook_is_kept_without_outputs():
    assert code_cells()
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells())


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(finished_run, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    folder = finished_run.parents[2] / "examples"
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    names = {}
    for number, cell in enumerate(code_cells()):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    assert names["nearest"].index[:, 0].tolist() == [0, 1, 2]
    assert torch.all(names["partial"].features["nir"] == 0)
    names["plt"].close("all")
