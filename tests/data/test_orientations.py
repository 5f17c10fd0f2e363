from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.io import write_png
from trees import write_rgbnt201

from trireid.config.load import load_config
from trireid.data.images import load_images
from trireid.data.orientations import NUM_ORIENTATIONS, expand_orientations, orient
from trireid.data.records import ImageSource, Record
from trireid.errors import ConfigError
from trireid.train.inputs import open_inputs

SQUARE = torch.tensor([[1, 2], [3, 4]])
ORIENTED = {  # quarter turns anticlockwise; from 4 on of the mirror image [[2, 1], [4, 3]]
    0: [[1, 2], [3, 4]],
    1: [[2, 4], [1, 3]],
    2: [[4, 3], [2, 1]],
    3: [[3, 1], [4, 2]],
    4: [[2, 1], [4, 3]],
    5: [[1, 3], [2, 4]],
    6: [[3, 4], [1, 2]],
    7: [[4, 2], [3, 1]],
}


@pytest.mark.parametrize("orientation", range(NUM_ORIENTATIONS))
def test_each_orientation_pixel_by_pixel(orientation: int) -> None:
    assert orient(SQUARE, orientation).tolist() == ORIENTED[orientation]
    assert orient(SQUARE.expand(2, 3, 2, 2), orientation)[1, 2].tolist() == ORIENTED[orientation]


def test_records_become_eight_identities_that_load_their_own_pixels(tmp_path: Path) -> None:
    pixels: dict[str, Tensor] = {}
    for name in ("rgb", "strip"):
        pixels[name] = torch.randint(0, 256, (3, 4, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        write_png(pixels[name], str(tmp_path / f"{name}.png"))
    images = (ImageSource(tmp_path / "rgb.png"), None, ImageSource(tmp_path / "strip.png", (4, 8)))
    records = (Record("a", images, "000001", "1"), Record("b", images, "000002", None, "s"))
    expanded = expand_orientations(records)
    assert expanded[:2] == records
    assert len({record.name for record in expanded}) == len(expanded) == 16
    assert [record.identity for record in expanded[6:8]] == ["000001/o3", "000002/o3"]
    assert [(record.camera, record.scene) for record in expanded[6:8]] == [("1", None), (None, "s")]
    for record in expanded:
        rgb, nir, strip = load_images(record)
        assert rgb is not None
        assert strip is not None
        assert nir is None
        assert torch.equal(rgb, orient(pixels["rgb"], record.orientation))
        assert torch.equal(strip, orient(pixels["strip"][:, :, 4:], record.orientation))


def test_training_is_expanded_after_the_hold_out_and_evaluation_is_not(tmp_path: Path) -> None:
    root = write_rgbnt201(tmp_path)
    settings = [f"data.root={root}", "data.image_size=[8, 8]", "data.batch_size=4", "data.num_instances=2"]
    plain = open_inputs(load_config(None, [*settings, "data.workers=0"]))
    turned = open_inputs(load_config(None, [*settings, "data.workers=0", "data.augmentation.dihedral_identities=true"]))
    assert len(turned.train_records) == 8 * len(plain.train_records)
    assert len(turned.label_map.identities) == 8 * len(plain.label_map.identities)
    assert turned.test.query_records == plain.test.query_records
    images = [dict(zip(batch.item.tolist(), batch.images, strict=True)) for batch in turned.loader]
    assert len(images) == len(turned.loader) > 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.augmentation.dihedral_identities=true", "data.image_size is 24 x 12: make it square"),
        ("data.augmentation.padding=12", "must be less than the smaller side of data.image_size, 12"),
    ],
)
def test_what_the_image_size_does_not_allow_is_one_line(setting: str, message: str) -> None:
    settings = ["data.image_size=[24, 12]", "data.augmentation.padding_mode=reflect", "data.augmentation.padding=4"]
    load_config(None, settings)
    with pytest.raises(ConfigError, match=message):
        load_config(None, [*settings, setting])
