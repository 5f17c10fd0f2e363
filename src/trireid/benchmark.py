"""What a model costs: multiply-adds by torch's own counter, with nothing left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trireid.types import NUM_MODALITIES


def count_macs(call: Callable[[], Any]) -> int:
    """Multiply-adds of everything that `call` runs, by torch's FLOP counter (2 FLOPs are 1 multiply-add).

    Fused attention runs in its plain form while it is counted: the counter has no formula for the fused operator of
    the CPU and would leave attention out without a word.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2


def model_macs(model: nn.Module, *, image_size: tuple[int, int], device: torch.device | str = "cpu") -> int:
    """Multiply-adds of one triplet in evaluation, `model(images)` with images `(1, M, 3, H, W)`."""
    images = torch.zeros(1, NUM_MODALITIES, 3, *image_size, device=device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return count_macs(lambda: model(images))
    finally:
        model.train(was_training)
