"""Where compiled models are tested: on the CPU, which needs a C++ compiler, and on a GPU."""

from __future__ import annotations

import shutil

import pytest
import torch

DEVICES = [
    pytest.param(
        "cpu",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here"),
        ],
    ),
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")],
    ),
]
