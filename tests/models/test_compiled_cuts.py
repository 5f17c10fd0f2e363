"""Compiled cuts (`Backbone.compile_blocks(cuts=True)`) choose and give what plain ones do."""

from __future__ import annotations

import copy

import pytest
import torch

from compiling import DEVICES
from trireid.config.schema import BackboneConfig, ModelConfig, SlimmingConfig
from trireid.models.build import build_model
from trireid.models.compiling import room_to_compile


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dropped", ["fuse", "merge"])
def test_compiled_cuts_are_plain_ones(device: str, dropped: str) -> None:
    stages = tuple(SlimmingConfig(after_block=number, keep_ratio=0.6, dropped=dropped) for number in (1, 2))
    tiny = BackboneConfig(name="tiny", pretrained="none", width=32, depth=3, num_heads=2)
    config = ModelConfig(backbone=tiny, head="none", slimming=stages)
    torch.manual_seed(0)
    plain = build_model(config, image_size=(32, 32), num_classes=4, num_cameras=0).to(device).eval()
    compiled = copy.deepcopy(plain)
    compiled.backbone.compile_blocks()
    compiled.backbone.compile_blocks(cuts=True)  # also afterwards
    with room_to_compile():
        for batch in (2, 5):
            images = torch.randn(batch, 3, 3, 32, 32, device=device)
            present = torch.ones(batch, 3, dtype=torch.bool, device=device)
            present[1, 2] = False
            for shown in (None, present):
                with torch.inference_mode():
                    expected, found = plain(images, shown), compiled(images, shown)
                assert expected.selection.keys() == found.selection.keys() == {"block1", "block2"}
                for name, chosen in expected.selection.items():
                    assert torch.equal(chosen.indices, found.selection[name].indices)
                    assert torch.equal(chosen.mask, found.selection[name].mask)
                    torch.testing.assert_close(chosen.scores, found.selection[name].scores, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(expected.embedding, found.embedding, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_rotary_positions_are_plain_ones_and_compiled_once(device: str) -> None:
    sizes = {"patch_size": 8, "width": 32, "depth": 2, "num_heads": 2}
    config = ModelConfig(
        backbone=BackboneConfig(name="vit_small_patch16_dinov3", pretrained="none", **sizes),
        head="none",
        slimming=(SlimmingConfig(after_block=1, keep_ratio=0.6),),
    )
    torch.manual_seed(0)
    plain = build_model(config, image_size=(32, 16), num_classes=4, num_cameras=0).to(device).eval()
    compiled, counts = copy.deepcopy(plain), []
    compiled.backbone.compile_blocks(cuts=True)
    with room_to_compile(), torch.inference_mode():
        for batch in (2, 3, 5):
            images = torch.randn(batch, 3, 3, 32, 16, device=device)
            torch.testing.assert_close(plain(images).embedding, compiled(images).embedding, atol=1e-4, rtol=1e-4)
            counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts == counts[:1] * 3


@pytest.mark.parametrize("device", DEVICES)
def test_batches_of_any_size_share_what_was_compiled(device: str) -> None:
    tiny = BackboneConfig(name="tiny", pretrained="none", width=32, depth=3, num_heads=2)
    config = ModelConfig(backbone=tiny, head="none", slimming=(SlimmingConfig(after_block=1, keep_ratio=0.6),))
    model = build_model(config, image_size=(32, 32), num_classes=4, num_cameras=2).to(device).eval()
    model.backbone.compile_blocks(cuts=True)
    counts = []
    with room_to_compile(), torch.inference_mode():
        for batch in (2, 3, 5, 7):
            images, camera = torch.randn(batch, 3, 3, 32, 32), torch.zeros(batch, dtype=torch.int64)
            model(images.to(device), camera=camera.to(device))
            counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] > 0
    assert counts == counts[:1] * 4
