"""Position tables: every entry arrives at its place, or the grid is asked for."""

import pytest
import torch
from safetensors.torch import save_file

from trireid.errors import CheckpointError
from trireid.models.backbone import create_vit
from trireid.models.positions import GRID_KEY, grid_text, recorded_grid, table_grid
from trireid.models.weights import load_backbone_weights
from trireid.upstream.importing import import_file

PATCH = 8


def pixels(grid):
    return grid[0] * PATCH, grid[1] * PATCH


def small(grid, name="tiny"):
    return create_vit(name, image_size=pixels(grid), patch_size=PATCH, width=16, depth=1, num_heads=2)


def ramp(grid):
    """A table that says where each patch lies: its row and its column, both in [0, 1]."""
    table = torch.zeros(1, 1 + grid[0] * grid[1], 16)
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    table[0, 1:, 0] = ((rows + 0.5) / grid[0]).flatten()
    table[0, 1:, 1] = ((columns + 0.5) / grid[1]).flatten()
    return table


def start_file(path, grid, metadata=None, name="tiny"):
    save_file({**small(grid, name).state_dict(), "pos_embed": ramp(grid)}, path, metadata=metadata)
    return str(path)


@pytest.mark.parametrize("says", ["the file", "the setting"])
@pytest.mark.parametrize(
    ("source", "target"),
    [((16, 8), (8, 16)), ((16, 4), (8, 8)), ((16, 8), (16, 16)), ((14, 14), (16, 8)), ((16, 8), (4, 32))],
)
def test_every_entry_arrives_at_its_place(tmp_path, source, target, says):
    in_file = says == "the file"
    path = start_file(tmp_path / "w.safetensors", source, {GRID_KEY: grid_text(source)} if in_file else None)
    vit = small(target)
    note = load_backbone_weights(
        vit, name="tiny", pretrained=path, interpolation="bilinear", image_size=None if in_file else pixels(source)
    )
    # A slope is kept but at the border, where the outermost entries go on.
    tolerance = 0.5 / min(*source, *target)
    torch.testing.assert_close(vit.pos_embed.detach()[..., :2], ramp(target)[..., :2], atol=tolerance, rtol=0)
    assert f"position table resized from {source[0]} x {source[1]} to {target[0]} x {target[1]}" in note


@pytest.mark.parametrize("target", [(16, 8), (8, 16), (8, 8)])
def test_a_grid_that_nobody_says_is_asked_for(tmp_path, target):
    path = start_file(tmp_path / "w.safetensors", (16, 8))
    with pytest.raises(
        CheckpointError, match=r"128 patches .*\(8 x 16, 16 x 8\): give model.backbone.pretrained_image"
    ):
        load_backbone_weights(small(target), name="tiny", pretrained=path)


def test_published_weights_and_start_files_need_no_word(tmp_path):
    name = "test_vit"  # published for 160 x 160 pixels in patches of 16
    sizes = {"patch_size": PATCH, "width": 16, "depth": 1, "num_heads": 2}
    path = start_file(tmp_path / "w.safetensors", (20, 20), name=name)
    vit = create_vit(name, image_size=(64, 32), **sizes)
    load_backbone_weights(vit, name=name, pretrained=path, interpolation="bilinear")
    torch.testing.assert_close(vit.pos_embed.detach()[..., :2], ramp((8, 4))[..., :2], atol=0.02, rtol=0)
    turned = start_file(tmp_path / "turned.safetensors", (16, 25), name=name)  # as many patches: the file must say it
    start = start_file(tmp_path / "damaged.safetensors", (20, 20), {GRID_KEY: "3x3"}, name=name)
    with pytest.raises(CheckpointError, match="names a position table of 3 x 3 patches and holds one of 400"):
        load_backbone_weights(vit, name=name, pretrained=start)
    with pytest.raises(CheckpointError, match=r"pretrained_image_size \(128 x 64\) has 16 x 8: give"):
        load_backbone_weights(vit, name=name, pretrained=turned, image_size=(128, 64))


def test_import_writes_the_grid_that_a_later_run_reads(tmp_path):
    vit = create_vit("vit_tiny_patch16_224", image_size=(128, 64))
    save_file({**vit.state_dict()}, tmp_path / "w.safetensors")
    arguments = {"backbone": "vit_tiny_patch16_224"}
    with pytest.raises(CheckpointError, match="32 patches and does not say.*--checkpoint-image-size"):
        import_file(tmp_path / "w.safetensors", tmp_path / "start.safetensors", **arguments)
    import_file(
        tmp_path / "w.safetensors", tmp_path / "start.safetensors", checkpoint_image_size=(128, 64), **arguments
    )
    same, turned = (create_vit("vit_tiny_patch16_224", image_size=size) for size in ((128, 64), (64, 128)))
    for target in (same, turned):
        load_backbone_weights(target, name="vit_tiny_patch16_224", pretrained=str(tmp_path / "start.safetensors"))
    assert torch.equal(same.pos_embed, vit.pos_embed)
    assert not torch.equal(turned.pos_embed, vit.pos_embed)


@pytest.mark.parametrize(
    ("count", "given", "words"),
    [
        (210, None, "overlapping patches .21 x 10, one every 12 pixels of 256 x 128., it cannot be used"),
        (210, (256, 128), "overlapping patches .21 x 10, one every 12 pixels of 256 x 128., which are not supported"),
        (162, (256, 128), "18 x 9, one every 14 pixels"),
        (242, (256, 128), "22 x 11, one every 11 pixels"),
        (100, (256, 128), "has 16 x 8: give the .height, width. of the images it was made for"),
    ],
)
def test_overlapping_patches_are_named(tmp_path, count, given, words):
    with pytest.raises(CheckpointError, match=words):
        table_grid(count, source=tmp_path, patch_size=(16, 16), given=given)


@pytest.mark.parametrize(
    ("metadata", "grid"),
    [
        ({"config": '{"data": {"image_size": [256, 128]}}'}, (16, 8)),  # as version 0.1.0 wrote checkpoints
        ({GRID_KEY: "8x16", "config": '{"data": {"image_size": [256, 128]}}'}, (8, 16)),
        ({}, None),
        ({GRID_KEY: "16x"}, None),
        ({"config": "[" * 100_000}, None),
        ({"config": '{"data": {"image_size": [1e999, "x"]}}'}, None),
    ],
)
def test_the_grid_of_older_checkpoints_is_that_of_their_images(metadata, grid):
    assert recorded_grid(metadata, patch_size=(16, 16)) == grid
