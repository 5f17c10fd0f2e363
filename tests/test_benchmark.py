"""Costs: what is counted equals a count by hand, times are taken in turn, rows are complete."""

import json
import sys
from functools import partial

import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from tiny_run import tiny_config
from trireid import benchmark
from trireid.cli.app import app
from trireid.cli.bench import _factory, measure
from trireid.config.load import dump_config, override_config
from trireid.config.schema import BackboneConfig, ModelConfig, SDTPSConfig, SlimmingConfig
from trireid.errors import ConfigError, InputError
from trireid.models.build import build_model
from trireid.models.reid import ReIDModel
from trireid.models.sdtps import SDTPS


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
    assert rows[1]["tflops"] is None


def test_operations_a_second_and_their_share_of_the_matrix_rate():
    # 3e9 multiply-adds a triplet, 4 triplets in 2 s: 12e9 operations a second; training does three times as much.
    costs = [
        benchmark.summarise("a", mode, [2.0], batch_size=4, parameters=1, macs=3 * 10**9, memory=None)
        for mode in ("inference", "training")
    ]
    rows = benchmark.as_rows(costs, rate=48e9)
    assert [row["tflops"] for row in rows] == pytest.approx([0.012, 0.036])
    assert [row["matrix_share"] for row in rows] == pytest.approx([0.25, 0.75])
    assert {row["matrix_share"] for row in benchmark.as_rows(costs)} == {None}
    assert benchmark.matrix_rate(torch.device("cpu"), dtype=torch.float32) is None


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
    assert rows[2]["parameters"] is rows[2]["gmac"] is None  # of a callable only the time is known, not 0
    assert rows[1]["gmac"] > rows[0]["gmac"] > 0
    assert all(row["throughput"] > 0 for row in rows)
    assert {row["batch_size"] for row in rows} == {8}


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path, tmp_path / "unused", "evaluate.batch_size=6")


def test_the_table_is_not_cut_where_there_is_no_terminal(config, tmp_path):
    name = "a-name-of-a-configuration-that-is-longer-than-most-of-them"
    (tmp_path / f"{name}.yaml").write_text(dump_config(config))
    result = CliRunner().invoke(app, ["bench", "-c", str(tmp_path / f"{name}.yaml"), "--repeats", "1"])
    assert result.exit_code == 0, result.output
    header, *rows = [line for line in result.stdout.splitlines() if "triplets/s" in line or name in line]
    assert [cell.strip() for cell in header.strip("\u2503").split("\u2503")][:3] == ["model", "mode", "batch"]
    cells = [[cell.strip() for cell in row.strip("\u2502").split("\u2502")] for row in rows]
    assert [row[:3] for row in cells] == [[name, "inference", "6"], [name, "training", "8"]]


def test_memory_is_measured_with_one_candidate_on_the_device(config, monkeypatch):
    """On the CPU in place of a GPU: what the others would hold there is what was moved there and not back."""
    there: dict[int, str] = {}
    seen = []

    def moved(module, *args, **kwargs):
        there[id(module)] = str(args[0])
        return module

    monkeypatch.setattr(ReIDModel, "to", moved)
    monkeypatch.setattr(ReIDModel, "cpu", lambda module: there.pop(id(module), None))

    def peak(make, *, device):
        make()()
        seen.append(len(there))
        return 7

    monkeypatch.setattr(benchmark, "peak_memory", peak)
    other = override_config(config, ["model.head=none"])
    modes = ("inference", "training")
    rows = measure({"a": config, "b": other}, modes=modes, repeats=1, warmup=0, callables=["test_benchmark:foreign"])
    assert seen == [1, 1, 1, 1, 0]
    assert [row["peak_memory"] for row in rows] == [7] * 5


@pytest.mark.slow
def test_peak_memory_is_that_of_the_second_step_of_what_was_made_for_it(monkeypatch):
    told = []
    for name in ("empty_cache", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_args, name=name: told.append(name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: told.append("read") or 42)
    peak = benchmark.peak_memory(
        lambda: told.append("made") or (lambda: told.append("step")), device=torch.device("cuda")
    )
    assert peak == 42
    needed = [name for name in told if name not in ("empty_cache", "synchronize")]
    assert needed == ["made", "step", "reset_peak_memory_stats", "step", "read"]
    assert told.index("read") > len(told) - 1 - told[::-1].index("synchronize")
    assert benchmark.peak_memory(lambda: pytest.fail("made on the CPU"), device=torch.device("cpu")) is None


@pytest.mark.parametrize("where", ["step", "making"])
def test_a_candidate_too_large_for_the_device_is_named(config, monkeypatch, where):
    def full(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(benchmark, "training_step", full if where == "making" else lambda *_a, **_o: full)
    with pytest.raises(ConfigError, match=r"big ran out of device memory in training with 12 triplets.*--batch-size"):
        measure({"big": config}, modes=("inference", "training"), repeats=1, warmup=0, batch_size=12)


@pytest.mark.slow
def test_the_timed_batches_of_a_compiled_model_compile_nothing(config, monkeypatch):
    compiled, rounds = [], []

    def count(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    torch.compiler.reset()
    measure(
        {"a": override_config(config, ["model.head=none"])},
        modes=("inference", "training"),
        repeats=2,
        warmup=1,
        batch_size=8,
        compile_models=True,
        progress=lambda _done, _all: rounds.append(len(compiled)),
    )
    assert 0 < rounds[0] == rounds[1] == rounds[2] < rounds[3] == rounds[4] == rounds[5]


class Own(torch.nn.Module):
    """The smallest model that has a size of its own."""

    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(width))

    @property
    def backbone(self):
        return self

    def compile_blocks(self, *, cuts=False):
        self.compile(dynamic=False)

    def forward(self, images):
        return images.mean() + self.weight


def test_no_compiled_model_of_a_long_comparison_runs_plain(config, monkeypatch):
    """torch stops at 8 compilations of one piece of code, without an error."""
    compiled, widths = [], iter(range(2, 12))

    def count(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    monkeypatch.setattr("trireid.cli.bench._model", lambda _config: Own(next(widths)))
    torch.compiler.reset()
    configs = {f"model{number}": config for number in range(10)}
    measure(configs, modes=("inference",), repeats=1, warmup=1, batch_size=1, compile_models=True)
    assert len(compiled) == 10


def test_a_batch_of_one_is_timed_in_both_modes(config, tmp_path):
    (tmp_path / "run.yaml").write_text(dump_config(config))
    arguments = ["bench", "-c", str(tmp_path / "run.yaml"), "--vary", "model.head=none,hdm_atmoe", "--repeats", "1"]
    result = CliRunner().invoke(app, [*arguments, "--batch-size", "1", "--out", str(tmp_path / "cost.json")])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert [row["mode"] for row in rows] == ["inference"] * 2 + ["training"] * 2
    assert {row["batch_size"] for row in rows} == {1}


def test_compilation_without_a_warm_up_is_refused(config, tmp_path):
    (tmp_path / "run.yaml").write_text(dump_config(config))
    result = CliRunner().invoke(app, ["bench", "-c", str(tmp_path / "run.yaml"), "--compile", "--warmup", "0"])
    assert result.exit_code == 2
    assert "--warmup is 0 with --compile" in result.stderr
    assert "--warmup 1 or more" in result.stderr


@pytest.mark.parametrize("use_gumbel", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_of_the_sound_head_is_measured_in_half_precision(dtype, use_gumbel):
    model = tiny(head="sdtps", sdtps=SDTPSConfig(preset="sound", use_gumbel=use_gumbel))
    step = benchmark.training_step(model, torch.randn(8, 3, 3, 32, 32), num_classes=8, dtype=dtype)
    assert all(torch.isfinite(step()) for _ in range(2))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_bf16_of_the_settings_reaches_the_timed_training(config, monkeypatch):
    settings = ["model.sdtps.preset=sound", "train.precision=bf16"]
    dtypes = []
    monkeypatch.setattr(SDTPS, "forward", _noting(SDTPS.forward, dtypes))
    rows = measure({"a": override_config(config, settings)}, modes=("training",), repeats=1, warmup=0)
    assert dtypes[-1] == torch.bfloat16
    assert rows[0]["throughput"] > 0


def _noting(forward, dtypes):
    def call(head, patches, *args, **options):
        dtypes.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else patches.dtype)
        return forward(head, patches, *args, **options)

    return call


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_peak_memory_of_a_candidate_is_the_same_alone_and_beside_others(config):
    config = override_config(config, ["train.device=cuda"])
    large = override_config(config, ["model.backbone.width=512", "model.backbone.depth=4"])
    modes, peaks = ("inference", "training"), []
    for configs in ({"a": config}, {"a": config, "large": large}, {"large": large, "a": config}):
        rows = measure(configs, modes=modes, repeats=1, warmup=1)
        peaks.append([row["peak_memory"] for row in rows if row["name"] == "a"])
    for together in peaks[1:]:
        assert together == pytest.approx(peaks[0], rel=0.02)


@pytest.mark.parametrize("spec", ["nothing", "no.such.module:f", "test_benchmark:absent", "test_benchmark:__doc__"])
def test_a_callable_that_is_not_there_is_named(tmp_path, spec):
    (tmp_path / "run.yaml").write_text(dump_config(tiny_config(tmp_path, tmp_path / "unused")))
    arguments = ["bench", "-c", str(tmp_path / "run.yaml"), "--repeats", "1", "--mode", "inference", "--callable", spec]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert spec in result.stderr


def test_a_callable_is_found_in_the_folder_of_the_user(tmp_path, monkeypatch):
    """As with `python -m trireid`, whose search path starts there; that of the console script does not."""
    (tmp_path / "lying_beside_the_user.py").write_text("def make(image_size, device):\n    return abs\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert _factory("lying_beside_the_user:make")(image_size=(2, 2), device="cpu") is abs


def test_cells_of_a_file_are_compared_by_their_names(tmp_path):
    (tmp_path / "run.yaml").write_text(dump_config(tiny_config(tmp_path, tmp_path / "unused")))
    (tmp_path / "cells.yaml").write_text("plain: [model.head=none]\nwith a head: [model.head=sdtps]\n")
    arguments = ["bench", "-c", str(tmp_path / "run.yaml"), "--cells", str(tmp_path / "cells.yaml"), "--repeats", "1"]
    arguments += ["--mode", "inference", "--batch-size", "2", "--out", str(tmp_path / "cost.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["run: plain", "run: with a head"]
    both = CliRunner().invoke(app, [*arguments, "--vary", "model.head=none"])
    assert both.exit_code == 2
    assert "--vary key=v1,v2 or --cells FILE, not both" in both.stderr


def test_recordings_on_a_cpu_are_refused(config, tmp_path):
    with pytest.raises(ConfigError, match=r"--cuda-graph needs a CUDA device and --warmup 5 or more; given are cpu"):
        measure({"a": config}, modes=("inference",), repeats=1, warmup=0, batch_size=1, record=True)
