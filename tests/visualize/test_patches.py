import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from trireid.data.records import ImageSource, Record
from trireid.errors import InputError
from trireid.types import Selection
from trireid.visualize.patches import DIMMED, dim_dropped, kept_pixels, patches_figure

PORTRAIT, LANDSCAPE = ((4, 2), (32, 16)), ((2, 4), (16, 32))


def literal_pixels(mask, grid, size):
    """Pixel by pixel: the patch it lies in, counted row by row."""
    (rows, columns), (height, width) = grid, size
    return torch.tensor(
        [
            [bool(mask[(y * rows // height) * columns + x * columns // width]) for x in range(width)]
            for y in range(height)
        ]
    )


def selection_of(mask, grid):
    kept = int(mask[0, 0].sum())
    indices = mask.int().topk(kept, dim=-1).indices.sort(dim=-1).values
    return Selection(indices=indices, scores=mask.float(), mask=mask, grid=grid)


def grey_record(tmp_path, size, *, absent=()):
    sources = []
    for name in ("rgb", "nir", "tir"):
        Image.new("RGB", (size[1], size[0]), (200, 200, 200)).save(tmp_path / f"{name}.png")
        sources.append(None if name in absent else ImageSource(tmp_path / f"{name}.png"))
    return Record("000007_cam1", tuple(sources), identity="7", camera="1")


@pytest.mark.parametrize(("grid", "size"), [PORTRAIT, LANDSCAPE, ((1, 8), (3, 24)), ((8, 1), (8, 5)), ((3, 3), (9, 9))])
def test_every_pixel_takes_the_choice_of_its_patch(grid, size):
    mask = torch.rand(2, 3, grid[0] * grid[1], generator=torch.Generator().manual_seed(0)) < 0.5
    pixels = kept_pixels(mask, grid=grid, size=size)
    assert pixels.shape == (2, 3, *size)
    for item in range(2):
        for modality in range(3):
            assert torch.equal(pixels[item, modality], literal_pixels(mask[item, modality], grid, size))


def test_a_grid_of_another_count_is_refused():
    with pytest.raises(InputError, match="4 x 3 does not hold 8 patches"):
        kept_pixels(torch.ones(8, dtype=torch.bool), grid=(4, 3), size=(32, 16))


def test_a_size_that_the_grid_does_not_divide_is_refused():
    with pytest.raises(InputError, match="32 x 15 pixels do not divide into 4 x 2"):
        kept_pixels(torch.ones(8, dtype=torch.bool), grid=(4, 2), size=(32, 15))


def test_dropped_pixels_are_dimmed_and_kept_ones_are_not():
    pixels = np.full((2, 2, 3), 200, dtype=np.uint8)
    drawn = dim_dropped(pixels, np.array([[True, False], [False, True]]))
    assert drawn[0, 0].tolist() == [200, 200, 200]
    assert drawn[0, 1].tolist() == [round(200 * DIMMED)] * 3
    assert drawn.dtype == np.uint8


@pytest.mark.parametrize(("grid", "size"), [PORTRAIT, LANDSCAPE])
def test_the_figure_shows_the_selection_of_the_item_asked_for(tmp_path, grid, size):
    mask = torch.zeros(2, 3, 8, dtype=torch.bool)
    for item in range(2):
        for modality in range(3):
            mask[item, modality, [item + modality, item + modality + 3]] = True
    figure = patches_figure(grey_record(tmp_path, size), selection_of(mask, grid), size=size, item=1)
    assert isinstance(figure, Figure)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["rgb", "nir", "tir"]
    for modality, axis in enumerate(figure.axes[3:]):
        bright = torch.from_numpy(axis.images[0].get_array()[..., 0] == 200)
        assert torch.equal(bright, literal_pixels(mask[1, modality], grid, size))
        assert axis.get_xlabel() == "2 of 8 kept"


def test_an_absent_modality_has_its_box_in_both_rows(tmp_path):
    grid, size = PORTRAIT
    mask = torch.ones(1, 3, 8, dtype=torch.bool)
    figure = patches_figure(grey_record(tmp_path, size, absent=("nir",)), selection_of(mask, grid), size=size)
    above, below = figure.axes[1].images[0].get_array(), figure.axes[4].images[0].get_array()
    assert np.array_equal(above, below)
    assert figure.axes[4].get_xlabel() == ""
