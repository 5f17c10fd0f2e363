from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from trireid.config.schema import RangeConfig
from trireid.data.images import ImageError, decode_image, load_images
from trireid.data.range_settings import depth_messages, filled_ranges, known_ranges, measure, resolve_ranges
from trireid.data.ranges import MAX_SAMPLES, evenly_spaced, own_range, to_8_bits
from trireid.data.records import ImageSource, Record


def write(path: Path, values: np.ndarray) -> ImageSource:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return ImageSource(path)


def thermal(path: Path, low: int = 28815, high: int = 31115, seed: int = 0) -> ImageSource:
    """Centikelvin of a scene between 15 and 38 degrees."""
    values = np.random.default_rng(seed).integers(low, high + 1, (40, 30)).astype(np.uint16)
    values[0, 0], values[-1, -1] = low, high
    return write(path, values)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_a_range_is_laid_linearly_on_0_to_255_and_clipped(dtype: type) -> None:
    values = np.array([[27000, 28000, 28500], [29000, 30000, 40000]], dtype=dtype)
    assert to_8_bits(values, (28000.0, 30000.0)).tolist() == [[0, 0, 64], [128, 255, 255]]


def test_8_bits_are_never_changed_and_deep_values_never_guessed() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for value_range in (None, "file", (1.0, 2.0)):
        assert to_8_bits(grey, value_range) is grey
    with pytest.raises(ValueError, match="no range"):
        to_8_bits(grey.astype(np.int8), None)


@pytest.mark.parametrize("value", [0, -40.5, 30000, 2**31 - 1, 1e30])
def test_a_constant_image_becomes_black(value: float) -> None:
    assert to_8_bits(np.full((3, 4), value), "file").tolist() == [[0] * 4] * 3


def test_one_outlier_does_not_take_the_range() -> None:
    values = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    values[0, 0] = 65535
    low, high = own_range(values)
    assert low == pytest.approx(11, abs=1)
    assert high == pytest.approx(9990, abs=1)


def test_evenly_spaced_positions_hold_both_ends() -> None:
    assert evenly_spaced(range(5), 10) == [0, 1, 2, 3, 4]
    assert evenly_spaced(range(100), 3) == [0, 50, 99]
    assert len(evenly_spaced(range(123_456), MAX_SAMPLES)) == MAX_SAMPLES


def test_centikelvin_keep_their_levels(tmp_path: Path) -> None:
    source = thermal(tmp_path / "tir.npy")
    record = Record("one", (None, None, source), "1")
    low_high = measure([source])
    (_, _, image) = load_images(record, (None, None, low_high))
    assert image is not None
    assert image.shape == (3, 40, 30)
    assert len(image.unique()) > 240  # a shift by 8 bits left 9 of them
    with pytest.raises(ImageError, match=r"tir\.npy: uint16 values, .*set data\.range\.tir=\[LOW,HIGH\]"):
        load_images(record)
    assert torch.equal(decode_image(source.path), decode_image(source.path, own_range(np.load(source.path))))


def test_auto_is_measured_on_deep_training_images_of_each_modality(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "rgb.png")
    rgb = ImageSource(tmp_path / "rgb.png")
    records = [Record(f"{n}", (rgb, None, thermal(tmp_path / f"{n}.npy", seed=n)), "1") for n in range(3)]
    with caplog.at_level(logging.INFO):
        resolved = resolve_ranges(RangeConfig(), records)
    assert resolved == resolve_ranges(RangeConfig(), records[::-1] + records)
    assert (resolved.rgb, resolved.nir) == ("auto", "auto")
    expected = np.percentile(np.concatenate([np.load(tmp_path / f"{n}.npy") for n in range(3)]), (0.1, 99.9))
    np.testing.assert_allclose(resolved.tir, expected)
    line = f"tir: 3 images of more than 8 bits, mapped to 256 levels from the range {expected[0]:.7g} to"
    line += f" {expected[1]:.7g} (0.1 and 99.9"
    assert caplog.messages[0].startswith(line)
    given = RangeConfig(tir=(1, 2), nir="file")
    assert resolve_ranges(given, records).tir == (1, 2)
    assert known_ranges(given) == (None, "file", (1, 2))
    assert filled_ranges(RangeConfig(nir="file"), resolved) == RangeConfig(nir="file", tir=resolved.tir)


def test_strips_are_measured_and_scaled_by_modality(tmp_path: Path) -> None:
    strip = np.concatenate([np.full((4, 5), value) for value in (100, 2000, 30000)], axis=1).astype(np.uint16)
    strip[0] += 50
    path = write(tmp_path / "strip.npy", strip).path
    record = Record("one", tuple(ImageSource(path, (5 * n, 5 * n + 5)) for n in range(3)), "1")
    ranges = known_ranges(resolve_ranges(RangeConfig(), [record]))
    assert [value[0] for value in ranges] == [100, 2000, 30000]
    for image in load_images(record, ranges):
        assert image is not None
        assert image[:, 0].unique().tolist() == [255]
        assert image[:, 1:].unique().tolist() == [0]


def test_mixed_depths_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deep, shallow = thermal(tmp_path / "a.npy"), write(tmp_path / "b.npy", np.zeros((4, 5), dtype=np.uint8))
    records = [Record("a", (None, None, deep), "1"), Record("b", (None, None, shallow), "1")]
    resolved = resolve_ranges(RangeConfig(), records)
    assert any("1 of 2 images have 8 bits and are used as they are, while 1 have more" in m for m in caplog.messages)
    caplog.clear()
    resolve_ranges(RangeConfig(tir="file"), records[1:])
    assert caplog.messages == ["data.range.tir changes nothing: all 1 tir images have 8 bits and are used as they are"]
    (message,) = depth_messages(resolved, records)
    assert message.startswith("1 of 2 tir images have 8 bits and are used as they are, though data.range.tir=[28")
    assert depth_messages(resolved, records[:1]) == depth_messages(RangeConfig(), records) == ()


@pytest.mark.parametrize(
    ("value", "words"), [([3, 3], "must be smaller"), ([3, 1], "must be smaller"), ("all", "auto"), ([1, 2, 3], "tir")]
)
def test_a_range_that_is_none_is_refused(value: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RangeConfig(tir=value)
