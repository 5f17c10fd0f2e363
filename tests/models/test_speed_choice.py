"""What is compiled and recorded: chosen by the device, the processes, the data and the work that is left."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from trireid.models import compiling
from trireid.models.compiling import SharedDropPath, compiler_obstacle, share_drop_path, use_compiler_cache
from trireid.models.speed_choice import COMPILE_ITEMS, RECORD_ITEMS, Speed, inference_speed, training_speed


def chosen(speed: Speed) -> str:
    return "+".join(name for name in ("compiled", "recorded") if getattr(speed, name)) or "plain"


@pytest.mark.parametrize(
    ("change", "choice", "line"),
    [
        (
            {},
            "compiled+recorded",
            "compiled blocks and a recorded step, because 50 epochs of 53 steps are left on one GPU",
        ),
        ({"epochs": 5}, "recorded", "a recorded step without compiled blocks, because 5 epochs of 53"),
        ({"epochs": 1}, "plain", "plain steps, because 1 epoch of 53 steps are left"),
        ({"num_processes": 2}, "compiled+recorded", "compiled blocks and a recorded step, because .* on 2 GPUs"),
        ({"complete": False}, "compiled", "on one GPU and triplets lack modalities in training$"),
        ({"precision": "fp16"}, "compiled", "50 epochs"),
        ({"obstacle": "Triton is not installed"}, "recorded", "on one GPU and Triton is not installed"),
        ({"obstacle": "none", "compiled": True}, "compiled+recorded", "train.compile is true"),
        ({"compiled": False}, "recorded", "train.compile is false"),
        ({"recorded": False}, "compiled", "train.cuda_graph is false"),
        ({"device": "cpu", "recorded": True}, "plain", "plain steps, because the device is a CPU$"),
        ({"device": "cpu", "compiled": True}, "compiled", "the device is a CPU and train.compile is true"),
        ({"compiled": False, "recorded": False}, "plain", "train.compile is false and train.cuda_graph is false"),
    ],
)
def test_training_is_fast_where_it_pays(change: dict[str, Any], choice: str, line: str) -> None:
    usual: dict[str, Any] = {
        "compiled": "auto", "recorded": "auto", "device": "cuda", "num_processes": 1, "precision": "bf16",
        "complete": True, "steps_per_epoch": 53, "epochs": 50,
    }  # fmt: skip
    speed = training_speed(**{**usual, **change})
    assert chosen(speed) == choice
    assert re.search(line, str(speed))


def test_inference_is_fast_where_it_pays() -> None:
    usual: dict[str, Any] = {"compiled": "auto", "recorded": "auto", "device": "cuda"}
    few, many, most = (inference_speed(**usual, num_items=n) for n in (RECORD_ITEMS - 1, RECORD_ITEMS, COMPILE_ITEMS))
    assert [chosen(each) for each in (few, many, most)] == ["plain", "recorded", "compiled+recorded"]
    assert str(few) == f"plain batches, because {RECORD_ITEMS - 1} items are to be computed on a GPU"
    assert chosen(inference_speed(**usual, num_items=COMPILE_ITEMS, obstacle="no Triton")) == "recorded"
    assert chosen(inference_speed(compiled=True, recorded=True, device="cpu", num_items=COMPILE_ITEMS)) == "compiled"
    assert chosen(inference_speed(compiled=True, recorded=False, device="cuda", num_items=1)) == "compiled"


def test_what_compilation_needs_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda _name: None)
    assert compiler_obstacle("cuda") == "Triton is not installed"
    monkeypatch.setattr(compiling.shutil, "which", lambda _name: None)
    assert "no C compiler" in str(compiler_obstacle("cpu"))


def test_the_compilers_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "other"))
    assert use_compiler_cache() == tmp_path / "other"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    folder = use_compiler_cache()
    assert folder == tmp_path / "trireid" / "compiler"
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    folder.chmod(0o777)
    monkeypatch.setattr(compiling.tempfile, "tempdir", str(tmp_path))
    temporary = use_compiler_cache()
    assert temporary.parent == tmp_path
    assert temporary.stat().st_mode & 0o777 == 0o700
    assert use_compiler_cache() == temporary == Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def test_shared_stochastic_depth_has_the_mean_and_the_rate_of_its_own() -> None:
    blocks = [nn.Module() for _ in range(3)]
    for block, layer in zip(blocks, (nn.Identity(), DropPath(0.25), DropPath(1.0)), strict=True):
        block.add_module("drop_path1", layer)
        block.weight = nn.Parameter(torch.zeros(1))
    share_drop_path(blocks)
    assert all(isinstance(block.drop_path1, SharedDropPath) for block in blocks)
    assert all(not block.state_dict().keys() - {"weight"} for block in blocks)
    rows = torch.ones(4000, 1, 2)
    torch.manual_seed(0)
    kept, some, none = (block.drop_path1(rows) for block in blocks)
    assert torch.equal(kept, rows)
    assert not none.any()
    assert some.unique().tolist() == pytest.approx([0, 4 / 3])
    assert some.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(blocks[1].eval().drop_path1(rows), rows)
