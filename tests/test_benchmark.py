"""Costs: what is counted equals a count by hand, times are taken in turn, rows are complete."""

import json

import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from tiny_run import tiny_config
from trireid import benchmark
from trireid.cli.app import app
from trireid.config.load import dump_config
from trireid.config.schema import BackboneConfig, ModelConfig, SlimmingConfig
from trireid.errors import InputError
from trireid.models.build import build_model


def tiny(**options):
    backbone = BackboneConfig(name="tiny", pretrained="none", width=32, depth=4, num_heads=4)
    return build_model(ModelConfig(backbone=backbone, **options), image_size=(32, 32), num_classes=8, num_cameras=2)


def test_macs_of_a_linear_map_and_of_attention():
    x, w = torch.zeros(3, 4), torch.zeros(5, 4)
    assert benchmark.count_macs(lambda: functional.linear(x, w)) == 3 * 4 * 5
    q = torch.zeros(1, 2, 7, 4)
    assert benchmark.count_macs(lambda: functional.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 7 * 7 * 4)


def test_slimming_saves_what_it_should():
    dense = benchmark.model_macs(tiny(head="none"), image_size=(32, 32))
    cut = (SlimmingConfig(after_block=1, keep_ratio=0.5, guidance="random"),)
    slim = benchmark.model_macs(tiny(head="none", slimming=cut), image_size=(32, 32))
    block = {tokens: 12 * tokens * 32 * 32 + 2 * tokens * tokens * 32 for tokens in (17, 10)}
    fusing = 16 * 32  # the weighted mean of the dropped patches
    assert dense - slim == 3 * (3 * (block[17] - block[10]) - fusing)


def test_counting_leaves_the_mode_of_the_model():
    model = tiny(head="sdtps").train()
    benchmark.model_macs(model, image_size=(32, 32))
    assert model.training


def test_steps_are_timed_in_turn():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = benchmark.time_steps(steps, device=torch.device("cpu"), repeats=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_summary_is_the_median_and_the_quartiles():
    cost = benchmark.summarise(
        "a", "inference", [3.0, 1.0, 2.0, 5.0, 4.0], batch_size=6, parameters=1, macs=2, memory=None
    )
    assert (cost.latency_low, cost.latency, cost.latency_high, cost.throughput) == (2.0, 3.0, 4.0, 2.0)
    other = benchmark.summarise("b", "inference", [1.5], batch_size=6, parameters=1, macs=None, memory=None)
    rows = benchmark.as_rows([cost, other])
    assert [row["relative_throughput"] for row in rows] == [1.0, 2.0]
    assert rows[1]["gmac"] is None


def test_training_step_changes_the_parameters():
    model, images = tiny(head="sdtps"), torch.randn(8, 3, 3, 32, 32)
    before = model.pife.reduce.weight.detach().clone()
    loss = benchmark.training_step(model, images, num_classes=8, dtype=None)()
    assert torch.isfinite(loss)
    assert not torch.equal(model.pife.reduce.weight, before)


def test_bad_counts_are_named():
    with pytest.raises(InputError, match="repeats is 0"):
        benchmark.time_steps({}, device=torch.device("cpu"), repeats=0, warmup=1)


def foreign(*, image_size, device):
    """What `--callable test_benchmark:foreign` finds."""
    weight = torch.randn(3 * image_size[0] * image_size[1], 4, device=device)
    return lambda images: images.mean(dim=1).flatten(1) @ weight


def test_the_command_compares_settings_and_a_callable_and_writes_json(tmp_path):
    (tmp_path / "run.yaml").write_text(dump_config(tiny_config(tmp_path, tmp_path / "unused")))
    arguments = ["bench", "-c", str(tmp_path / "run.yaml"), "--vary", "model.head=none,sdtps", "--repeats", "2"]
    arguments += ["--warmup", "1", "--batch-size", "8", "--callable", "test_benchmark:foreign"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "cost.json")])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    names = ["run: head=none", "run: head=sdtps", "test_benchmark:foreign"]
    assert [(row["name"], row["mode"]) for row in rows] == [
        *((name, "inference") for name in names),
        *((name, "training") for name in names[:2]),
    ]
    assert rows[1]["parameters"] > rows[0]["parameters"] > 0
    assert rows[1]["gmac"] > rows[0]["gmac"] > 0
    assert all(row["throughput"] > 0 for row in rows)


@pytest.mark.parametrize("spec", ["nothing", "no.such.module:f", "test_benchmark:absent"])
def test_a_callable_that_is_not_there_is_named(tmp_path, spec):
    (tmp_path / "run.yaml").write_text(dump_config(tiny_config(tmp_path, tmp_path / "unused")))
    arguments = ["bench", "-c", str(tmp_path / "run.yaml"), "--repeats", "1", "--mode", "inference", "--callable", spec]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert spec in result.stderr
