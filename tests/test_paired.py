"""The paired table: differences and intervals against loops, and a grid read from its run folders."""

from __future__ import annotations

import importlib.util
import random
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from trireid.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("paired", ROOT / "benchmarks" / "paired.py")
assert spec is not None
assert spec.loader is not None
paired = importlib.util.module_from_spec(spec)
sys.modules["paired"] = paired
spec.loader.exec_module(paired)


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
