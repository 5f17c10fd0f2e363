from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import write_jpeg, write_png

from trireid.data.images import ImageError, decode_image, load_images, verify_images
from trireid.data.records import ImageSource, Record


def noise(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA"])
def test_png_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
    path = tmp_path / "image.png"
    Image.fromarray(grey).convert(mode).save(path)
    image = decode_image(path)
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(grey).expand(3, 4, 5))


def test_16_bit_grey_png_is_scaled_from_its_range(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 65535], [4096, 511, 512, 32768]], dtype=np.uint16)
    path = tmp_path / "thermal.png"
    Image.fromarray(values).save(path)
    expected = torch.tensor([[0, 1, 1, 255], [16, 2, 2, 128]], dtype=torch.uint8)
    assert torch.equal(decode_image(path, (0, 65280)), expected.expand(3, 2, 4))


def test_grey_jpeg_becomes_rgb(tmp_path: Path) -> None:
    path = tmp_path / "grey.jpg"
    Image.new("L", (5, 4), 77).save(path)
    assert torch.equal(decode_image(path), torch.full((3, 4, 5), 77, dtype=torch.uint8))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99, "last byte"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated(tmp_path: Path, suffix: str, share: float | str) -> None:
    path = tmp_path / f"cut{suffix}"
    (write_jpeg if suffix == ".jpg" else write_png)(noise(32, 24), str(path))
    data = path.read_bytes()
    path.write_bytes(data[:-1] if isinstance(share, str) else data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=f"cut{suffix}: a truncated") as caught:
        decode_image(path)
    assert "\n" not in str(caught.value)


def test_png_with_wrong_checksum_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "corrupt.png"
    write_png(noise(32, 24), str(path))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8] = bytes(8)
    path.write_bytes(bytes(data))
    with pytest.raises(ImageError, match="a truncated or corrupt PNG"):
        decode_image(path)


def test_damaged_jpeg_header(tmp_path: Path) -> None:
    path = tmp_path / "corrupt.jpg"
    write_jpeg(noise(32, 24), str(path))
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(bytes(data))
    with pytest.raises(ImageError, match="a truncated or corrupt JPEG"):
        decode_image(path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "an empty file"), (b"hello", "not a JPEG, PNG"), (None, "cannot be read")]
)
def test_no_image_at_all(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "file.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        decode_image(path)


def test_strip_is_cut_into_modalities(tmp_path: Path) -> None:
    strip = torch.cat([torch.full((3, 2, 4), value, dtype=torch.uint8) for value in (10, 20, 30)], dim=2)
    path = tmp_path / "strip.png"
    write_png(strip, str(path))
    columns = ((0, 4), (4, 8), (8, 12))
    record = Record("strip", tuple(ImageSource(path, pair) for pair in columns), "1")
    images = load_images(record)
    assert [int(image.float().mean()) for image in images if image is not None] == [10, 20, 30]
    write_png(strip[:, :, :-1], str(path))
    with pytest.raises(ImageError, match="must be 12 pixels wide, this one has 11"):
        load_images(record)
    assert [fault.path for fault in verify_images([record]).faults] == [path]


def test_absent_modality_is_none(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    write_png(noise(3, 2), str(path))
    images = load_images(Record("one", (None, ImageSource(path), None), "1"))
    assert images[0] is None
    assert images[2] is None
    assert images[1] is not None
    assert torch.equal(images[1], noise(3, 2))


def test_error_made_anew_from_a_worker_traceback_keeps_its_line() -> None:
    wrapped = (
        "Caught ImageError in DataLoader worker process 1.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 3\ntrireid.data.images.ImageError: a.jpg: a truncated or corrupt JPEG; replace the file\n'
    )
    assert str(ImageError(wrapped)) == "a.jpg: a truncated or corrupt JPEG; replace the file"
    assert str(ImageError("a.jpg: an empty file")) == "a.jpg: an empty file"
