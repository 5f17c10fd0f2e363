"""Device, precision and seeds."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from trireid.errors import ConfigError
from trireid.train.device import (
    autocast_dtype,
    deterministic_algorithms,
    make_accelerator,
    resolve_device,
    resolve_precision,
    seed_epoch,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_cuda_without_cuda_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"train\.device=cpu or auto"):
        resolve_device("cuda")
    assert resolve_device("auto") == CPU


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [resolve_device(name) for name in ("auto", "cuda", "cpu")] == [CUDA, CUDA, CPU]


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ConfigError, match="auto, cpu and cuda"):
        resolve_device("tpu")
    with pytest.raises(ConfigError, match="auto, fp32, bf16, fp16"):
        resolve_precision("fp8", CPU)


@pytest.mark.parametrize("supported", [True, False])
def test_auto_precision(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("auto", CUDA) == ("bf16" if supported else "fp32")
    assert resolve_precision("fp16", CUDA) == "fp16"


def test_fp16_on_the_cpu_is_an_error() -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        resolve_precision("fp16", CPU)


def test_autocast_types() -> None:
    assert [autocast_dtype(name) for name in ("fp32", "bf16", "fp16")] == [None, torch.bfloat16, torch.float16]


def test_two_runs_of_one_process_may_have_different_precisions() -> None:
    assert make_accelerator(device=CPU, precision="bf16").mixed_precision == "bf16"
    assert make_accelerator(device=CPU, precision="fp32").mixed_precision == "no"


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002 - the global generator is meant


def test_a_seed_fixes_all_generators_and_each_epoch_has_its_own() -> None:
    def after(seed: int, epoch: int, process: int = 0) -> tuple[float, float, float]:
        seed_epoch(seed, epoch, process=process)
        return draws()

    assert after(1, 2) == after(1, 2)
    different = {after(1, 2), after(2, 2), after(1, 3), after(1, 2, process=1), after(-1, 2)}
    assert len(different) == 5


def test_determinism_is_undone_at_the_end() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(CPU):
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
    with pytest.raises(KeyError), deterministic_algorithms(CPU):
        raise KeyError
    assert torch.are_deterministic_algorithms_enabled() == before
