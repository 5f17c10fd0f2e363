"""`train.compile`: compiled blocks learn what plain ones learn, with and without cuts inside the ViT."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import torch

from compiling import DEVICES
from tiny_run import tiny_config, write_tree
from trireid.models import speed_choice
from trireid.models.backbone import Backbone
from trireid.models.build import build_model
from trireid.models.compiling import forget_compiled
from trireid.models.speed_choice import Speed
from trireid.train import compilation, loop
from trireid.train.device import make_accelerator
from trireid.train.loop import train
from trireid.train.runs import read_epochs
from trireid.types import Batch

CUTS = "model.slimming=[{after_block: 1, keep_ratio: 0.5}]"


@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path: Path, device: str) -> None:
    root = write_tree(tmp_path / "data")
    settings = (f"train.device={device}", "train.precision=fp32", "model.backbone.depth=2", "model.head=none", CUTS)
    losses = {}
    for compiled in ("false", "true"):
        config = tiny_config(root, tmp_path / compiled, *settings, "train.dense_epochs=1", f"train.compile={compiled}")
        train(config, progress=False)
        losses[compiled] = [entry["loss"]["total"] for entry in read_epochs(config.output)]
    assert losses["true"] == pytest.approx(losses["false"], rel=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("head", ["none", "sdtps", "hdm_atmoe"])
def test_a_recorded_run_has_the_losses_of_a_plain_one(tmp_path: Path, head: str) -> None:
    root = write_tree(tmp_path / "data")
    settings = ["train.device=cuda", "train.precision=fp32", "train.epochs=6", f"model.head={head}"]
    if head != "sdtps":
        settings += ["model.backbone.depth=2", CUTS, "train.dense_epochs=2"]
    losses = {}
    for recorded in ("false", "true"):
        config = tiny_config(root, tmp_path / recorded, *settings, f"train.cuda_graph={recorded}")
        train(config, progress=False)
        losses[recorded] = [entry["loss"]["total"] for entry in read_epochs(config.output)]
    assert losses["true"] == pytest.approx(losses["false"], rel=2e-2)


@pytest.mark.slow
def test_a_recording_that_is_not_possible_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(write_tree(tmp_path / "data"), tmp_path / "run", "train.device=cpu", "train.cuda_graph=true")
    train(config, progress=False)
    assert "train.cuda_graph has no effect here" in caplog.text


def test_what_cannot_be_compiled_leaves_the_model_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backbone, "compile_blocks", _fail_in_backward)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = tiny_config(tmp_path, tmp_path / "run")
    model = build_model(config.model, image_size=(32, 16), num_classes=4, num_cameras=2)
    before, numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    accelerator = make_accelerator(device=torch.device("cpu"), precision="fp32")
    chosen = Speed(compiled=True, recorded=False, reason="it was set")
    speed = compilation.compiled_if_possible(model, chosen, accelerator=accelerator, sizes={True: 2, False: 3})
    assert not speed.compiled
    assert not model.backbone.is_compiled
    assert "the blocks cannot be compiled here (RuntimeError: no compiler): the run goes on without" in caplog.text
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("device", "compiled", "started"), [("cuda", True, 1), ("cuda", False, 0), ("cpu", True, 0)])
def test_processes_that_compile_start_with_the_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, device: str, compiled: bool, started: int
) -> None:
    calls: list[str] = []

    def fail() -> None:
        calls.append("started")
        raise RuntimeError("no process can be started")  # which loses nothing: the compilation goes on without

    monkeypatch.setattr("torch._inductor.async_compile.AsyncCompile.warm_pool", fail)
    make_accelerator(device=torch.device("cpu"), precision="fp32")  # looks for packages by their names, once
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: "found")
    monkeypatch.delenv("TORCH_WARM_POOL", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compilation, "training_speed", lambda **_: Speed(compiled, recorded=False, reason="it was set"))
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=1)
    inputs = SimpleNamespace(complete=True, loader=[])
    config = tiny_config(tmp_path, tmp_path / "run")
    arguments: dict[str, Any] = {"precision": "bf16", "inputs": inputs, "epochs": 1}
    assert compilation.choose_speed(config, cast("Any", accelerator), **arguments).compiled is compiled
    assert len(calls) == started


FAILING = """
import multiprocessing, os, signal, sys
from trireid.models.compiling import start_compile_workers

def fail():
    start_compile_workers()
    server = sys.modules["torch._inductor.async_compile"].AsyncCompile.process_pool().process
    os.kill(server.pid, signal.SIGSTOP)  # it is never ready
    print(server.pid, flush=True)
    raise SystemExit(2)
"""
IN_A_FORK = """
process = multiprocessing.get_context("fork").Process(target=fail)
process.start()
process.join()
raise SystemExit(process.exitcode)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("ending", ["fail()", IN_A_FORK])
def test_a_program_that_fails_does_not_wait_for_processes_that_still_start(tmp_path: Path, ending: str) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    environment.pop("TORCH_WARM_POOL", None)
    command = [sys.executable, "-c", FAILING + ending]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert not psutil.pid_exists(int(done.stdout))


def test_a_cache_that_cannot_be_made_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_blocks(_backbone: Backbone) -> None:
        Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).mkdir(parents=True, exist_ok=True)
        try:
            raise EOFError
        except EOFError:  # as torch reports a file that it compiles again
            logging.getLogger("torch._inductor.codecache").warning("cache unable to load compiled graph", exc_info=True)

    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(Backbone, "compile_blocks", compile_blocks)
    monkeypatch.setattr(compilation, "forget_compiled", lambda: None)  # it imports the compiler
    config = tiny_config(tmp_path, tmp_path / "run")
    model = build_model(config.model, image_size=(32, 16), num_classes=4, num_cameras=2)
    accelerator = make_accelerator(device=torch.device("cpu"), precision="fp32")
    chosen = Speed(compiled=True, recorded=False, reason="it was set")
    assert compilation.compiled_if_possible(model, chosen, accelerator=accelerator, sizes={True: 2}).compiled
    assert f"the compiler's cache in {tmp_path / 'file' / 'cache'} was not usable (NotADirectoryError" in caplog.text
    assert "1 files of the compiler's cache in" in caplog.text
    assert "unable to load" not in caplog.text


@pytest.mark.slow
def test_a_cache_whose_files_are_damaged_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = tiny_config(tmp_path, tmp_path / "run")
    accelerator = make_accelerator(device=torch.device("cpu"), precision="fp32")
    chosen = Speed(compiled=True, recorded=False, reason="it was set")
    for _ in range(2):
        forget_compiled()  # as a later program finds the folder
        model = build_model(config.model, image_size=(32, 16), num_classes=4, num_cameras=2)
        assert compilation.compiled_if_possible(model, chosen, accelerator=accelerator, sizes={True: 2}).compiled
        damaged = list(tmp_path.rglob("*.py"))  # a library that is loaded would end the process
        for path in damaged:
            path.write_text("def (")
    assert damaged
    assert f"the compiler's cache in {tmp_path} was not usable (" in caplog.text


@pytest.mark.slow
def test_a_run_that_cannot_be_compiled_goes_on_plain_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, losses = write_tree(tmp_path / "data"), []
    monkeypatch.setattr(Backbone, "compile_blocks", _fail_in_backward)
    for compiled in ("false", "true"):
        config = tiny_config(root, tmp_path / compiled, "train.epochs=1", f"train.compile={compiled}")
        train(config, progress=False)
        losses.append([entry["loss"] for entry in read_epochs(config.output)])
    assert losses[0] == losses[1]
    assert "the blocks cannot be compiled here (RuntimeError: no compiler): the run goes on without" in caplog.text
    assert "speed: plain steps, because train.compile is false" not in caplog.text


def _fail_in_backward(self: Backbone) -> None:
    """Blocks that run forwards, as compiled ones do, and fail when their backward pass is to be compiled."""

    def refuse(_gradient: torch.Tensor) -> None:
        raise RuntimeError("no compiler\nlong text")

    self.is_compiled = True
    self.embed = lambda *args: _refusing(type(self).embed(self, *args), refuse)  # type: ignore[method-assign]


def _refusing(tokens: torch.Tensor, hook: object) -> torch.Tensor:
    if tokens.requires_grad:
        tokens.register_hook(hook)
    return tokens


@pytest.mark.slow
def test_blocks_share_one_compiled_form_and_no_step_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, before, compiler, tried = [], [], torch.compile, compilation._try_blocks

    def keep(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def compile_module(self: torch.nn.Module, **options: Any) -> None:
        self._compiled_call_impl = compiler(self._call_impl, backend=keep, **options)

    def try_blocks(*given: Any) -> None:
        tried(*given)
        before.append(len(graphs))

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(compiler, backend=keep))
    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    monkeypatch.setattr(compilation, "_try_blocks", try_blocks)
    settings = ("model.head=none", "model.backbone.depth=5", "model.backbone.drop_path=0.2", "train.compile=true")
    train(tiny_config(write_tree(tmp_path / "data"), tmp_path / "run", *settings), progress=False)
    assert before == [2]  # a block in training, and in evaluation
    assert len(graphs) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_step_that_cannot_be_recorded_goes_on_plain_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, losses, plain = write_tree(tmp_path / "data"), {}, loop.make_gradients

    def waiting(batch: Batch, **given: Any) -> dict[str, torch.Tensor]:
        terms = plain(batch, **given)
        terms["total"].item()  # waits for the device, which no recording can
        return terms

    for recorded, gradients in (("false", plain), ("true", waiting)):
        monkeypatch.setattr(loop, "make_gradients", gradients)
        settings = ("train.device=cuda", "train.precision=fp32", "train.epochs=4", "model.backbone.drop_path=0.1")
        config = tiny_config(root, tmp_path / recorded, *settings, f"train.cuda_graph={recorded}")
        train(config, progress=False)
        losses[recorded] = [entry["loss"]["total"] for entry in read_epochs(config.output)]
    assert caplog.text.count("a training step cannot be recorded here") == 1
    assert losses["true"] == pytest.approx(losses["false"], rel=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("head", ["none", "sdtps", "hdm_atmoe"])
def test_a_run_that_sets_nothing_has_the_losses_and_metrics_of_a_plain_one(
    tmp_path: Path, head: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "trireid")
    monkeypatch.setattr(speed_choice, "COMPILE_STEPS", 1)
    monkeypatch.setattr(speed_choice, "RECORD_STEPS", 1)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiler"))
    root = write_tree(tmp_path / "data")
    settings = ["train.device=cuda", "train.precision=fp32", "train.epochs=6", f"model.head={head}"]
    settings += ["evaluate.batch_size=8", "train.checkpoint_every=3"]
    settings += ["data.augmentation.blinding=0.3", "data.augmentation.erasing=0.3"]
    if head != "sdtps":
        settings += ["model.backbone.depth=2", CUTS, "train.dense_epochs=2"]
    found = {}
    for name, off in (("plain", ("train.compile=false", "train.cuda_graph=false")), ("auto", ())):
        config = tiny_config(root, tmp_path / name, *settings, *off)
        metrics = train(config, progress=False)
        found[name] = (
            [entry["loss"]["total"] for entry in read_epochs(config.output)],
            metrics["feature"]["global"]["mAP"],
        )
    assert "speed: compiled blocks and a recorded step, because 6 epochs of" in caplog.text
    assert not [record for record in caplog.records if "cannot be" in record.message]
    assert found["auto"][0] == pytest.approx(found["plain"][0], rel=2e-2)
    assert found["auto"][1] == pytest.approx(found["plain"][1], abs=0.05)
    assert any((tmp_path / "compiler").iterdir())
