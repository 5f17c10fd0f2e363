"""Metrics by a column of the queries are those of a ranking of these queries alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trireid.cli.metric_tables import tables
from trireid.data.records import Record
from trireid.errors import InputError
from trireid.evaluation.breakdown import NOT_KNOWN, break_down, check_columns
from trireid.evaluation.metrics import rank_metrics
from trireid.evaluation.protocols import take
from trireid.types import Labels, Protocol


def test_every_group_has_the_metrics_of_its_queries_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    identity = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3])  # the last has no match
    camera = torch.arange(10) % 2
    labels = Labels(identity, camera, torch.full_like(identity, -1), torch.arange(10))
    scenes = ["10", "9", None, "10", "9", None, "10", "9", None, "alone"]
    records = [Record(str(row), (), str(int(identity[row])), scene=scene) for row, scene in enumerate(scenes)]
    protocol = Protocol("camera", "camera")
    distances = {name: torch.rand(10, 10, generator=generator) for name in ("global", "joint")}
    rankings = {name: rank_metrics(each, labels, labels, protocol) for name, each in distances.items()}
    found = break_down(rankings, records, ["scene", "identity"])
    assert list(found["scene"]) == ["9", "10", "alone", NOT_KNOWN]
    assert list(found["identity"]) == ["0", "1", "2", "3"]
    assert found["scene"]["alone"] == {"num_queries": 1, "num_unmatched": 1, "feature": {}}
    for value, group in found["scene"].items():
        rows = torch.tensor([row for row, scene in enumerate(scenes) if (scene or NOT_KNOWN) == value])
        assert group["num_queries"] == len(rows)
        for name, metrics in group["feature"].items():
            alone = rank_metrics(distances[name][rows], take(labels, rows), labels, protocol)
            assert metrics == pytest.approx(alone.as_dict())
    with pytest.raises(InputError, match="none of the chosen queries"):
        rankings["joint"].of_queries(torch.tensor([9]))


def test_columns_that_no_query_has_are_one_line_with_those_there_are() -> None:
    records = [Record("a", (), "1", camera="2")]
    check_columns(records, ["camera", "identity"])
    with pytest.raises(InputError, match="metrics by 'scene': .* choose among identity, camera$"):
        check_columns(records, ["camera", "scene"])
    weather = [Record(name, (), name, columns=(("weather", value),)) for name, value in (("a", "rain"), ("b", "fog"))]
    with pytest.raises(InputError, match="'scene': .* choose among identity, weather$"):
        check_columns(weather, ["weather", "scene"])
    distance = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    labels = Labels(torch.zeros(2), torch.arange(2), torch.zeros(2), torch.arange(2))
    ranked = rank_metrics(distance, labels, labels, Protocol("camera", "camera"))
    assert list(break_down({"joint": ranked}, weather, ["weather"])["weather"]) == ["fog", "rain"]
    odd = [replace(record, columns=(("weather", "a|b\nc"),)) for record in weather]
    shown = tables({"by": break_down({"joint": ranked}, odd, ["weather"])})[0]
    assert "| a\\|b\\nc | 2 |" in shown
    with pytest.raises(InputError, match="choose among identity, camera, scene"):
        break_down({}, records, ["name"])
