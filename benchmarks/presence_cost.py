"""The cost of a batch that lacks modalities: every subset, timed in turn in one process, beside all three.

python benchmarks/presence_cost.py --config configs/trireid/rgbnt201/hdm_atmoe.yaml [--batch-size 8] [--device cuda]
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from trireid.benchmark import count_macs, describe_machine, time_steps
from trireid.cli.guard import guarded
from trireid.config.load import load_config
from trireid.models.build import build_model
from trireid.train.device import autocast_dtype, resolve_device, resolve_precision
from trireid.types import MODALITIES, NUM_MODALITIES, modality_subsets


def infer(model: nn.Module, images: Tensor, present: Tensor | None, dtype: torch.dtype | None) -> object:
    """One forward pass without gradient."""
    with torch.inference_mode(), torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
        return model(images, present=present)


def main() -> None:
    """Time and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    given = parser.parse_args()
    config = load_config(given.config, ["model.backbone.pretrained=none"])
    device = resolve_device(given.device)
    dtype = autocast_dtype(resolve_precision(config.train.precision, device))
    model = build_model(config.model, image_size=config.data.image_size, num_classes=0, num_cameras=0).to(device).eval()
    images = torch.randn(given.batch_size, NUM_MODALITIES, 3, *config.data.image_size, device=device)
    steps = {}
    for subset in sorted(modality_subsets(), key=len, reverse=True):
        present = torch.zeros(given.batch_size, NUM_MODALITIES, dtype=torch.bool, device=device)
        for modality in subset:
            present[:, modality] = True
        name = " + ".join(MODALITIES[modality] for modality in subset)
        steps[name] = partial(infer, model, images, None if len(subset) == NUM_MODALITIES else present, dtype)
    macs = {name: count_macs(step) / given.batch_size for name, step in steps.items()}
    seconds = {
        name: median(values)
        for name, values in time_steps(steps, device=device, repeats=given.repeats, warmup=2).items()
    }
    whole = next(iter(steps))
    lines = ["| present | GMAC per triplet | relative | ms per batch | relative |", "|---|---:|---:|---:|---:|"]
    for name in steps:
        lines.append(
            f"| {name} | {macs[name] / 1e9:.2f} | {macs[name] / macs[whole]:.3f} | {1e3 * seconds[name]:.1f} "
            f"| {seconds[name] / seconds[whole]:.3f} |"
        )
    sys.stdout.write("\n".join(lines) + f"\n{describe_machine(device)}, batch {given.batch_size}\n")


if __name__ == "__main__":
    with guarded():
        main()
