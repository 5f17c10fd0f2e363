"""The command of docs/performance.md runs, and what it times equals plain numpy at a size that loops cannot reach."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_benchmark_compares_with_plain_numpy(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    benchmark = import_module("ranking")
    try:
        small = {"num_query": 40, "num_gallery": 160, "num_identities": 12, "num_cameras": 3}
        monkeypatch.setattr(benchmark, "SIZES", {"rgbnt100": small})
        benchmark.main(["--repetitions", "1", "--dim", "8", "--out", str(tmp_path / "times.json")])
    finally:
        del sys.modules["ranking"], sys.modules["literal_ranking"]
    times = json.loads((tmp_path / "times.json").read_text())["sizes"]["rgbnt100"]
    assert times["ranking, largest difference"] == pytest.approx(0.0, abs=1e-6)
    assert times["re-ranking, largest difference"] == pytest.approx(0.0, abs=1e-5)
    assert "literal re-ranking / re-ranking" in capsys.readouterr().out
