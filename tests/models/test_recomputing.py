"""`recompute_blocks`: the same gradients, with less kept for the backward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from compiling import DEVICES
from tiny_run import tiny_config, write_tree
from trireid.models.backbone import Backbone, create_vit
from trireid.models.slimming import SlimmingStage
from trireid.train.loop import train
from trireid.train.runs import read_epochs

STAGES = {
    "dense": (),
    "two cuts": (SlimmingStage(1, 0.5, "learned"), SlimmingStage(2, 0.5, "cross")),
}


def gradients(backbone: Backbone, images: Tensor, present: Tensor | None) -> tuple[dict[str, Tensor], int]:
    """Gradients of all weights and the images, and the bytes that the backward pass needs of the forward pass."""
    kept = []
    torch.manual_seed(1)
    backbone.zero_grad()
    images = images.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.nbytes) or each, lambda each: each):
        output = backbone(images, present=present, camera=torch.tensor([0, 1]))
        total = output.cls.square().sum() + output.patches.square().sum() + sum(output.auxiliary.values())
    after = torch.rand(1)  # what is drawn later does not change
    total.backward()
    found = {name: each.grad for name, each in backbone.named_parameters() if each.grad is not None}
    return found | {"images": images.grad, "after": after}, sum(kept)


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("complete", [True, False])
def test_gradients_are_those_of_blocks_that_are_kept(stages: str, complete: bool) -> None:
    torch.manual_seed(0)
    vit = create_vit("tiny", image_size=(32, 16), drop_path=0.3)
    backbone = Backbone(vit, num_cameras=2, stages=STAGES[stages]).double()
    images = torch.randn(2, 3, 3, 32, 16, dtype=torch.float64)
    present = None if complete else torch.tensor([[True, False, True], [True, True, True]])
    expected, much = gradients(backbone, images, present)
    backbone.recompute_blocks = True
    found, little = gradients(backbone, images, present)
    assert found.keys() == expected.keys()
    assert {"images", "vit.blocks.0.attn.qkv.weight"} <= found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert little < much / 2


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_run_learns_the_same(tmp_path: Path, device: str) -> None:
    """Compiled and plain; on a GPU recorded as well."""
    root = write_tree(tmp_path / "data")
    settings = [f"train.device={device}", "train.precision=fp32", "model.head=sdtps", "train.epochs=3"]
    ways = {"kept": (), "again": ("true",), "compiled": ("true", "train.compile=true")}
    ways |= {"recorded": ("true", "train.cuda_graph=true")} if device == "cuda" else {}
    losses = {}
    for name, (again, *more) in {name: way or ("false",) for name, way in ways.items()}.items():
        config = tiny_config(root, tmp_path / name, *settings, f"train.recompute_blocks={again}", *more)
        train(config, progress=False)
        losses[name] = [entry["loss"]["total"] for entry in read_epochs(config.output)]
    if device == "cpu":
        assert losses["again"] == losses["kept"]
    for name in ways:
        assert losses[name] == pytest.approx(losses["kept"], rel=2e-2)
