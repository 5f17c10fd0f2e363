from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from trireid.config.schema import BackboneConfig, ModelConfig, SlimmingConfig
from trireid.data.records import ImageSource, Record
from trireid.errors import InputError
from trireid.models.build import build_model
from trireid.visualize.gradcam import grad_cam, grad_cam_figure, in_grid

ORIENTATIONS = [((4, 2), (32, 16)), ((2, 4), (16, 32))]


class Planted(nn.Module):
    """Patch tokens are mean pixels, blocks pass them on, the embedding is their sum: each patch speaks for itself."""

    def __init__(self, grid, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.backbone = SimpleNamespace(vit=SimpleNamespace(blocks=self.blocks, num_prefix_tokens=1), grid=grid)
        self.pool = nn.AvgPool2d((size[0] // grid[0], size[1] // grid[1]))

    def forward(self, images, present=None, camera=None):
        patches = self.pool(images[0]).flatten(2).transpose(1, 2)[present[0]]  # (R, N, 3)
        tokens = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1) * self.scale
        for block in self.blocks:
            tokens = block(tokens)
        return SimpleNamespace(embedding=tokens[:, 1:].sum(dim=(0, 1))[None], selection={})


def tiny_model(image_size=(32, 16), slimming=(), head="sdtps"):
    torch.manual_seed(0)
    backbone = BackboneConfig(name="tiny", pretrained="none", patch_size=8, width=16, depth=3, num_heads=2)
    config = ModelConfig(backbone=backbone, head=head, slimming=slimming)
    return build_model(config, image_size=image_size, num_classes=0, num_cameras=0, load_pretrained=False).eval()


@pytest.mark.parametrize(("grid", "size"), ORIENTATIONS)
@pytest.mark.parametrize(("modality", "patch"), [(0, 0), (1, 5), (2, 7)])
def test_a_planted_patch_is_where_the_heat_peaks(grid, size, modality, patch):
    height, width = size[0] // grid[0], size[1] // grid[1]
    row, column = divmod(patch, grid[1])
    images = torch.full((1, 3, 3, *size), 0.01)
    images[0, modality, :, row * height : (row + 1) * height, column * width : (column + 1) * width] = 1.0
    heat = grad_cam(Planted(grid, size), images)
    assert heat.shape == (3, *size)
    y, x = np.unravel_index(heat[modality].argmax(), size)
    assert (y // height, x // width) == (row, column)
    assert heat[modality].max() == pytest.approx(1.0, abs=1e-3)


def test_absent_modalities_have_no_heat_and_the_others_keep_their_place():
    grid, size = ORIENTATIONS[0]
    images = torch.full((1, 3, 3, *size), 0.01)
    images[0, :, :, 24:, 8:] = 1.0
    heat = grad_cam(Planted(grid, size), images, present=torch.tensor([[True, False, True]]))
    assert heat[1].max() == 0
    for modality in (0, 2):
        y, x = np.unravel_index(heat[modality].argmax(), size)
        assert (y // 8, x // 8) == (3, 1)


@pytest.mark.parametrize(
    ("size", "head"), [((32, 16), "sdtps"), ((16, 32), "sdtps"), ((32, 16), "hdm"), ((32, 16), "none")]
)
def test_real_models_of_every_head_have_heat(size, head):
    images = torch.randn(1, 3, 3, *size, generator=torch.Generator().manual_seed(0))
    model = tiny_model(size, head=head)
    heat = grad_cam(model, images)
    assert heat.shape == (3, *size)
    assert ((heat >= 0) & (heat <= 1)).all()
    assert heat.max() > 0.9
    other = torch.randn(model(images).embedding.shape[1], generator=torch.Generator().manual_seed(1))
    assert not np.allclose(heat, grad_cam(model, images, reference=other))


def test_patches_dropped_before_the_block_have_no_heat():
    model = tiny_model(slimming=(SlimmingConfig(after_block=1, keep_ratio=0.25, guidance="self"),), head="none")
    images = torch.randn(1, 3, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    mask = model(images).selection["block1"].mask[0]  # (M, N)
    tokens = torch.arange(1.0, 1 + 3 * 4).view(3, 4, 1)  # CLS, 2 kept, fused
    maps = in_grid(tokens, model(images).selection["block1"].indices[0], rows=torch.arange(3), grid=(4, 2))
    assert maps.shape == (3, 1, 4, 2)
    assert torch.equal(maps.flatten(1) > 0, mask)
    assert maps[1].flatten()[mask[1]].tolist() == [6.0, 7.0]
    heat = grad_cam(model, images, after_block=2)
    corners = torch.from_numpy(heat)[:, 4::8, 4::8].flatten(1)  # the middle of each patch
    assert (corners[~mask] <= corners.max() * 0.3).all()  # what is left there comes from resizing
    assert corners[mask].max() > 0.3


def test_bad_arguments_are_said():
    model = tiny_model()
    images = torch.zeros(1, 3, 3, 32, 16)
    with pytest.raises(InputError, match="blocks 1 to 3"):
        grad_cam(model, images, after_block=4)
    with pytest.raises(InputError, match="one triplet at a time, given 2"):
        grad_cam(model, images.expand(2, -1, -1, -1, -1))


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_grad_cam", None)
    with pytest.raises(InputError, match=r"trireid\[gradcam\]"):
        grad_cam(tiny_model(), torch.zeros(1, 3, 3, 32, 16))


def test_the_figure_lays_the_heat_over_the_images(tmp_path):
    Image.new("RGB", (16, 32), (10, 200, 30)).save(tmp_path / "a.png")
    record = Record("r", (ImageSource(tmp_path / "a.png"), None, ImageSource(tmp_path / "a.png")), "1")
    heat = np.random.default_rng(0).random((3, 32, 16), dtype=np.float32)
    figure = grad_cam_figure(record, heat)
    layers = [axis.images for axis in figure.axes]
    assert np.array_equal(layers[1][1].get_array(), heat[0])
    assert len(layers[3]) == 1  # absent: no heat
