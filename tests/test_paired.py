"""The paired table: differences and intervals against loops, and a grid read from its run folders."""

from __future__ import annotations

import importlib
import random
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trireid.data.records import ImageSource, Record
from trireid.errors import InputError, RunError
from trireid.evaluation.feature_files import load_features, save_features
from trireid.evaluation.features import FeatureSet
from trireid.evaluation.ranking import Ranking, Side
from trireid.types import MODALITY_BLOCKS, Labels, Protocol, modality_subsets

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
paired = importlib.import_module("paired")


def cell(name, rise, seeds=3):
    generator = np.random.default_rng(1)
    precision = generator.uniform(0.2, 0.6, (seeds, 40)) + rise * (np.arange(40) % 2)
    precision[:, 7] = np.nan  # a query without a match
    scene = np.where(np.arange(40) < 20, "smoke", "night")
    return paired.Cell(name, precision, np.array([str(number // 4) for number in range(40)]), scene)


def test_the_difference_is_over_queries_and_its_interval_over_identities():
    base, better = cell("base", 0.0), cell("better", 0.1)
    rows = [number for number in range(40) if number != 7]
    value, low, high = paired.difference(better, base)
    gains = {number: 100 * mean(better.precision[:, number] - base.precision[:, number]) for number in rows}
    assert value == pytest.approx(mean(gains.values()))
    drawn, chance = [], random.Random(0)
    for _ in range(2000):
        chosen = [chance.randrange(10) for _ in range(10)]
        taken = [gains[number] for identity in chosen for number in rows if number // 4 == identity]
        drawn.append(mean(taken))
    assert (low, high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.05)
    assert low < value < high
    smoke = paired.difference(better, base, "smoke")
    assert smoke[0] == pytest.approx(mean(gains[number] for number in rows if number < 20))
    assert paired.difference(base, base) == (0.0, 0.0, 0.0)
    with pytest.raises(RunError, match="no query is of scene 'fog'; there are night, smoke"):
        paired.difference(better, base, "fog")
    with pytest.raises(RunError, match="they must share their test set"):
        paired.difference(better, replace(base, identity=base.identity[::-1]))


def test_the_table_has_a_row_for_every_cell():
    base, better = cell("base", 0.0), cell("better", 0.1)
    rates = {"better": 500.0}
    rows = paired.rows_of([base, better], [base], scenes=["smoke"], others={"base": base}, rates=rates)
    lines = paired.markdown(rows).splitlines()
    assert lines[0].startswith(
        "| cell | seeds | mAP, all | mAP, smoke | mAP, other grid | to base, all | to base, smoke"
    )
    assert lines[2].split("|")[6].strip() == "-"
    assert lines[3].split("|")[6].strip().startswith("+4.")
    assert "2.000" in lines[3]
    assert len({line.count("|") for line in lines}) == 1
    plain = paired.markdown(paired.rows_of([base, better], [base], scenes=[], others={}, rates={})).splitlines()
    assert plain[0] == "| cell | seeds | mAP, all | to base, all |"
    assert {line.count("|") for line in plain} == {5}


def test_scripts_refuse_files_and_names_that_they_cannot_use(tmp_path, monkeypatch):
    check_variant = importlib.import_module("fp8_accuracy").check_variant
    assert check_variant("qkv+fc1@2-11") == (["qkv", "fc1"], 2, 11)
    for variant, said in (("qkvs", "products are qkv"), ("qkv@3", "FIRST-LAST"), ("all@4-2", "FIRST-LAST")):
        with pytest.raises(InputError, match=said):
            check_variant(variant)
    for content, said in (
        ('{"rows', "cannot be read .*: remove or restore it"),
        ("[]", "cannot be read"),
        ('{"runs": []}', "has no list 'rows'"),
        ('{"rows": [1]}', "has no rows of trireid bench"),
    ):
        path = tmp_path / "costs.json"
        path.write_text(content)
        with pytest.raises(RunError, match=said):
            paired.read_rates(path)
    with pytest.raises(RunError, match="no query is of scene 'dusk'; there are night, smoke"):
        cell("a", 0.0).seeds("dusk")
    scripts = {"paired": ["--feature", "heads", "--against", "a"], "centring": ["--rules", "cameras"]}
    for script, words in (scripts | {"landsat_yardsticks": ["more"]}).items():
        monkeypatch.setattr(sys, "argv", [script, str(tmp_path), *words])
        with pytest.raises(SystemExit, match="2"):
            importlib.import_module(script).main()


def test_runs_are_ranked_without_their_own_adaptive_fusion_and_a_note_says_so(tmp_path, capsys, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    item, present = torch.arange(8), torch.ones(8, 3, dtype=torch.bool)
    labels = Labels(item % 4, item // 4, torch.full((8,), -1), item)
    records = tuple(Record(f"{n}", (ImageSource(Path(f"{n}.png")),) * 3, identity=str(n % 4)) for n in range(8))
    for name, blocks, own in (("hdm", modality_subsets(), 0.0), ("sdtps", MODALITY_BLOCKS, 4.0)):
        features = {"global": torch.randn(8, 4 * len(blocks), generator=generator)}
        side = Side(FeatureSet(features, present, item, {"global": blocks}), labels, records)
        (tmp_path / name / "seed1").mkdir(parents=True)
        save_features(tmp_path / name / "seed1", Ranking(side, side, Protocol("camera", "camera"), adaptive_fusion=own))
    assert list(paired.read_grid(tmp_path, "global", power=2.0)) == ["hdm_fused", "sdtps_fused"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("hdm/seed1: global mixes spectra or items lack some: ranked without adaptive fusion")

    script, chosen = importlib.import_module("centring"), SimpleNamespace(adaptive_fusion=4.0, centring="none")
    checkpoint = SimpleNamespace(config=SimpleNamespace(evaluate=chosen), centre={"global": torch.zeros(12)})
    monkeypatch.setattr(script, "load_checkpoint", lambda run: checkpoint)
    run = tmp_path / "sdtps" / "seed1"
    saved = load_features(run)
    found = {
        power: script.measure(run, saved, ("camera",), power=power)["global"]["camera"]["none"] for power in (0.0, 4.0)
    }
    whole, fused = paired.read_cell(run.parent, "global"), paired.read_cell(run.parent, "global", power=4.0)
    assert [found[0.0], found[4.0]] == pytest.approx([np.nanmean(each.precision) for each in (whole, fused)])
    assert found[0.0] != found[4.0]
    paired.note_left_out([whole, fused], 4.0)
    script.note_left_out([saved.adaptive_fusion], 4.0)
    assert not capsys.readouterr().err
    paired.note_left_out([whole], None)
    script.note_left_out([saved.adaptive_fusion], 0.0)
    first, second = capsys.readouterr().err.splitlines()
    assert "evaluate.adaptive_fusion=4, which is left out here: --adaptive-fusion 4" in first
    assert "evaluate.adaptive_fusion=4 and are ranked without it here: --adaptive-fusion 4" in second
    monkeypatch.setattr(sys, "argv", ["centring", str(tmp_path / "none")])
    with pytest.raises(RunError, match="holds no finished run"):
        script.main()
