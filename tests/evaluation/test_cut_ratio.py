"""The ratio of a cut by held-out identities."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from tiny_run import untrained_run, write_tree
from trireid.errors import ConfigError, InputError
from trireid.evaluation.cut_ratio import choose_ratio, foreseen_share


def test_the_search_stops_at_the_first_ratio_that_costs_too_much():
    scores = {0.5: [0.60, 0.62], 1.0: [0.60, 0.62], 0.8: [0.604, 0.608], 0.6: [0.5, 0.62]}
    assert choose_ratio(scores) == 0.8
    assert choose_ratio(scores, tolerance=0.0) == 1.0
    assert choose_ratio(scores, tolerance=0.1) == 0.5
    with pytest.raises(InputError, match="tolerance is 5"):
        choose_ratio(scores, tolerance=5)
    with pytest.raises(InputError, match="at least one score"):
        choose_ratio({1.0: []})


def test_the_foreseen_share_is_the_softmax_of_what_is_kept():
    scores = torch.tensor([[1.0, 2.0, -torch.inf], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[False, True, False], [True, True, False]])
    literal = [torch.e / (1 + torch.e), 2 / 3]
    assert torch.allclose(foreseen_share(scores, mask), torch.tensor(literal))


@pytest.mark.slow
def test_scripts_measure_cuts_of_runs_and_refuse_what_they_cannot_measure(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    root, cut = write_tree(tmp_path / "data"), "model.slimming=[{after_block: 1, keep_ratio: 0.5, guidance: learned}]"
    more = ("model.backbone.depth=2", "data.val_ids=2", "data.modalities=[rgb,tir]", "model.head=sdtps", cut)
    slots = untrained_run(root, tmp_path / "runs" / "slots", *more)
    cells = untrained_run(root, tmp_path / "runs" / "cells", *more, "model.sdtps.cells=[2,1]")

    def call(script, *words):
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        importlib.import_module(script).main()
        return capsys.readouterr().out

    for words, error, said in (
        ((cells, "--ratios", "1,2"), InputError, "give numbers above 0 and at most 1"),
        ((cells, "--tolerance", "-1"), InputError, "it must lie in"),
        ((slots, "--ratios", "1,0.5"), ConfigError, "train it with model.sdtps.cells"),
    ):
        with pytest.raises(error, match=said):
            call("choose_ratio", *words)
    assert "| 0.5 |" in call("choose_ratio", cells, "--ratios", "0.5,1,1.0")
    rows = call("dropped_places", slots, cells).splitlines()
    names = [row.split(" | ")[0] for row in rows[2:]]
    assert names == [f"| runs/{run}, {name}" for run in ("slots", "cells") for name in ("rgb", "tir")]
    assert "nan" not in "".join(rows)
