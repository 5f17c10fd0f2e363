"""A try: matrix products of the ViT's blocks in 8-bit floating point, beside bf16, on one Hopper GPU or later.

python benchmarks/fp8.py --config configs/trireid/rgbnt201/baseline.yaml --batch-size 128 model.backbone.pretrained=none
python benchmarks/fp8.py --run runs/synthetic/vit_small     (speed, and mAP of that run's global feature with both)

The linear maps of attention and MLP take weights in e4m3 with one scale an output, and their inputs in e4m3 with one
scale a token, found on the way; sums are bf16. Everything else stays as it is. Both models are compiled and recorded.
What it gave: docs/performance.md.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from trireid.benchmark import inference_step, summarise, time_steps
from trireid.config.load import load_config, override_config
from trireid.models.build import build_model
from trireid.models.compiling import room_to_compile
from trireid.models.recorded import RecordedModel
from trireid.models.reid import ReIDModel
from trireid.train.checkpoint import build_for, load_checkpoint
from trireid.train.evaluating import evaluate_split
from trireid.train.inputs import open_test, scan_index
from trireid.types import NUM_MODALITIES

LARGEST = torch.finfo(torch.float8_e4m3fn).max
NAMES = ("qkv", "proj", "fc1", "fc2")


class Linear8(nn.Module):
    """`y = x W^T + b` with both factors in e4m3, for inference."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST  # (outputs, 1)
        self.register_buffer("weight", (weight / scale).to(torch.float8_e4m3fn))
        self.register_buffer("scale", scale.T.contiguous())
        self.register_buffer("bias", linear.bias.detach().to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., inputs)` to `(..., outputs)` in bf16."""
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LARGEST
        small = (rows.float() / scale).to(torch.float8_e4m3fn)
        product = torch._scaled_mm(
            small,
            self.weight.T,
            scale_a=scale,
            scale_b=self.scale,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return product.unflatten(0, x.shape[:-1])


def in_8_bits(model: ReIDModel) -> ReIDModel:
    """A copy whose blocks multiply in e4m3."""
    changed = copy.deepcopy(model)
    for block in changed.backbone.vit.blocks:
        for parent in (block.attn, block.mlp):
            for name in NAMES:
                if isinstance(getattr(parent, name, None), nn.Linear):
                    setattr(parent, name, Linear8(getattr(parent, name)))
    return changed


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE")] = None,
    config: Annotated[Path, typer.Option(help="with fresh weights")] = Path("configs/trireid/rgbnt201/baseline.yaml"),
    run: Annotated[Path | None, typer.Option(help="a run folder, in place of --config: mAP too")] = None,
    batch_size: Annotated[int, typer.Option()] = 128,
    repeats: Annotated[int, typer.Option()] = 30,
) -> None:
    """Print speed, how far the features are apart, and mAP where a run is given."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    if run is None:
        settings = load_config(config, overrides or [])
        size = settings.data.image_size
        model = build_model(settings.model, image_size=size, num_classes=171, num_cameras=4, load_pretrained=False)
    else:
        checkpoint = load_checkpoint(run)
        settings = override_config(checkpoint.config, overrides or [])
        size, model = settings.data.image_size, build_for(checkpoint, settings)
    models = {"bf16": model.to(device).eval()}
    models["fp8"] = in_8_bits(models["bf16"])
    if run is not None:
        split = open_test(settings, scan_index(settings), checkpoint.label_map, device=device)
        for name, each in models.items():
            result = evaluate_split(each, split, settings=settings.evaluate, device=device, dtype=dtype, progress=False)
            typer.echo(f"{name}: mAP {result.metrics['global']['mAP']:.4f}")
    images = torch.randn(batch_size, NUM_MODALITIES, 3, *size, device=device)
    with room_to_compile(len(models)):
        for each in models.values():
            each.backbone.compile_blocks(cuts=True)
        steps = {
            name: inference_step(RecordedModel(each, dtype=dtype), images, dtype=dtype) for name, each in models.items()
        }
        first, second = (step().features["global"].float() for step in steps.values())
        seconds = time_steps(steps, device=device, repeats=repeats, warmup=3)
    typer.echo(f"cosine of the global features: {nn.functional.cosine_similarity(first, second).mean():.5f}")
    for name, values in seconds.items():
        cost = summarise(name, "inference", values, batch_size=batch_size, parameters=0, macs=None, memory=None)
        typer.echo(f"{name}: {1e3 * cost.latency:.2f} ms per batch, {cost.throughput:.0f} triplets/s")


if __name__ == "__main__":
    typer.run(main)
