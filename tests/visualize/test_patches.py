import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from trireid.data.records import ImageSource, Record
from trireid.errors import InputError
from trireid.models.selection import fuse_dropped, fused_weights
from trireid.types import Selection
from trireid.visualize.patches import (
    DIMMED,
    GONE,
    NO_SCORE,
    PatchState,
    heat_image,
    patch_pixels,
    patch_states,
    patches_figure,
    slot_maps,
    slots_figure,
    state_image,
)

PORTRAIT, LANDSCAPE = ((4, 2), (32, 16)), ((2, 4), (16, 32))


def literal_pixels(values, grid, size):
    """Pixel by pixel: the patch it lies in, counted row by row."""
    (rows, columns), (height, width) = grid, size
    return torch.tensor(
        [[values[(y * rows // height) * columns + x * columns // width] for x in range(width)] for y in range(height)]
    )


def selection_of(mask, grid, *, gone=()):
    kept = int(mask[0, 0].sum())
    indices = mask.int().topk(kept, dim=-1).indices.sort(dim=-1).values
    scores = mask.float()
    scores[..., list(gone)] = -torch.inf
    return Selection(indices=indices, scores=scores, mask=mask, grid=grid)


def two_kept(items=2):
    """Patches item + modality and three further on, of eight."""
    mask = torch.zeros(items, 3, 8, dtype=torch.bool)
    for item in range(items):
        for modality in range(3):
            mask[item, modality, [item + modality, item + modality + 3]] = True
    return mask


def grey_record(tmp_path, size, *, absent=()):
    sources = []
    for name in ("rgb", "nir", "tir"):
        Image.new("RGB", (size[1], size[0]), (200, 200, 200)).save(tmp_path / f"{name}.png")
        sources.append(None if name in absent else ImageSource(tmp_path / f"{name}.png"))
    return Record("000007_cam1", tuple(sources), identity="7", camera="1")


def drawn_maps(figure, grid):
    """Pixels of every map by modality and step, however the figure lies."""
    images = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    steps = len(images) // 3
    portrait = grid[0] > grid[1]
    return [[images[m * steps + s] if portrait else images[s * 3 + m] for s in range(steps)] for m in range(3)]


@pytest.mark.parametrize(("grid", "size"), [PORTRAIT, LANDSCAPE, ((1, 8), (3, 24)), ((8, 1), (8, 5)), ((3, 3), (9, 9))])
def test_every_pixel_takes_the_value_of_its_patch(grid, size):
    values = torch.rand(2, 3, grid[0] * grid[1], generator=torch.Generator().manual_seed(0))
    pixels = patch_pixels(values, grid=grid, size=size)
    assert pixels.shape == (2, 3, *size)
    for item in range(2):
        for modality in range(3):
            assert torch.equal(pixels[item, modality], literal_pixels(values[item, modality], grid, size))


def test_a_grid_of_another_count_is_refused():
    with pytest.raises(InputError, match="4 x 3 does not hold 8 patches"):
        patch_pixels(torch.ones(8), grid=(4, 3), size=(32, 16))


def test_a_size_that_the_grid_does_not_divide_is_refused():
    with pytest.raises(InputError, match="32 x 15 pixels do not divide into 4 x 2"):
        patch_pixels(torch.ones(8), grid=(4, 2), size=(32, 15))


def test_states_tell_dropped_here_from_dropped_before():
    scores = torch.tensor([[[0.9, 0.1, -torch.inf, 0.5]]])
    mask = torch.tensor([[[True, False, False, True]]])
    selection = Selection(torch.tensor([[[0, 3]]]), scores, mask, grid=(2, 2))
    kept, dropped, gone = PatchState.KEPT, PatchState.DROPPED, PatchState.GONE
    assert patch_states(selection).tolist() == [[[kept, dropped, gone, kept]]]


def test_weights_of_the_fused_token_are_those_that_make_it():
    generator = torch.Generator().manual_seed(0)
    patches, scores = torch.randn(5, 6, 4, generator=generator), torch.randn(5, 6, generator=generator)
    mask = torch.tensor([True, False, True, False, False, False]).expand(5, -1)
    weights = fused_weights(scores, mask)
    assert (weights[mask] == 0).all()
    assert torch.allclose(weights.sum(dim=-1), torch.ones(5))
    assert torch.allclose((weights.unsqueeze(-1) * patches).sum(dim=1), fuse_dropped(patches, scores, mask), atol=1e-6)


def test_kept_pixels_are_as_they_are_and_dropped_ones_are_tinted_by_their_weight():
    pixels = np.full((2, 8, 3), 200, dtype=np.uint8)
    states = torch.tensor([PatchState.KEPT, PatchState.DROPPED, PatchState.DROPPED, PatchState.GONE])
    drawn = state_image(pixels, states, torch.tensor([0.0, 0.0, 1.0, 0.0]), grid=(1, 4))
    assert drawn.dtype == np.uint8
    assert (drawn[:, :2] == 200).all()
    assert (drawn[:, 2:4] == round(200 * DIMMED)).all()
    assert drawn[0, 4].tolist() == [140, 104, 25]  # halfway between the dimmed pixel and the tint
    assert (drawn[:, 6:] == round(200 * GONE)).all()


def test_heat_is_brightest_at_the_highest_score_and_dark_without_one():
    pixels = np.full((4, 4, 3), 100, dtype=np.uint8)
    drawn = heat_image(pixels, torch.tensor([0.1, 0.9, -torch.inf, 0.5]), grid=(2, 2)).astype(int)
    corners = drawn[0, 0].sum(), drawn[3, 3].sum(), drawn[0, 3].sum()
    assert corners[0] < corners[1] < corners[2]
    assert (drawn[2:, :2] == NO_SCORE).all()


@pytest.mark.parametrize(("grid", "size"), [PORTRAIT, LANDSCAPE])
def test_the_figure_shows_the_selection_of_the_item_asked_for(tmp_path, grid, size):
    mask = two_kept()
    selection = selection_of(mask, grid)
    figure = patches_figure(grey_record(tmp_path, size), {"sdtps": selection}, size=size, item=1)
    assert isinstance(figure, Figure)
    for modality, (image, _, kept) in enumerate(drawn_maps(figure, grid)):
        assert (np.asarray(image) == 200).all()
        bright = torch.from_numpy((np.asarray(kept) == 200).all(axis=-1))
        assert torch.equal(bright, literal_pixels(mask[1, modality], grid, size))
    words = [axis.get_title() + axis.get_xlabel() + axis.get_ylabel() for axis in figure.axes]
    assert sum("2 of 8 kept" in word for word in words) == 3
    assert all(any(name in word for word in words) for name in ("rgb", "nir", "tir", "sdtps\nscores", "sdtps\nkept"))


def test_every_depth_has_its_own_maps(tmp_path):
    grid, size = PORTRAIT
    stages = {"block1": selection_of(two_kept(1), grid), "sdtps": selection_of(two_kept(1), grid, gone=(7,))}
    maps = drawn_maps(patches_figure(grey_record(tmp_path, size), stages, size=size), grid)
    assert [len(steps) for steps in maps] == [5, 5, 5]
    gone = literal_pixels(torch.arange(8) == 7, grid, size)
    assert torch.equal(torch.from_numpy((np.asarray(maps[0][4]) == round(200 * GONE)).all(axis=-1)), gone)


def test_an_absent_modality_has_its_box_in_every_map(tmp_path):
    grid, size = PORTRAIT
    selection = selection_of(torch.ones(1, 3, 8, dtype=torch.bool), grid)
    maps = drawn_maps(
        patches_figure(grey_record(tmp_path, size, absent=("nir",)), {"sdtps": selection}, size=size), grid
    )
    assert all(np.array_equal(maps[1][0], each) for each in maps[1])
    assert not np.array_equal(maps[0][0], maps[0][1])


def test_slots_have_the_weights_of_their_patches(tmp_path):
    grid, size = PORTRAIT
    selection = selection_of(two_kept(1), grid)
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).expand(1, 3, 2, 2)
    selection = Selection(selection.indices, selection.scores, selection.mask, grid, weights)
    maps = slot_maps(selection)
    assert maps.shape == (1, 3, 2, 8)
    assert maps[0, 1, 0].tolist() == [0, 0.25, 0, 0, 0.75, 0, 0, 0]
    drawn = drawn_maps(slots_figure(grey_record(tmp_path, size), selection, size=size), grid)
    assert [len(steps) for steps in drawn] == [3, 3, 3]
    coloured = torch.from_numpy((np.asarray(drawn[1][1]) != NO_SCORE).any(axis=-1))
    assert torch.equal(coloured, literal_pixels(selection.mask[0, 1], grid, size))


def test_nothing_selected_and_nothing_aggregated_are_said(tmp_path):
    grid, size = PORTRAIT
    with pytest.raises(InputError, match="selects no patches"):
        patches_figure(grey_record(tmp_path, size), {}, size=size)
    with pytest.raises(InputError, match="no slot weights"):
        slot_maps(selection_of(two_kept(1), grid))
