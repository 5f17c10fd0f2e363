from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from trireid.data.transforms import Geometry, TestTransform, TrainTransform, apply_geometry, erase
from trireid.errors import InputError

SIZE = (16, 8)


def coordinates() -> Tensor:
    """Red is 1 + row, green is 1 + column, blue 255: pixel values say where they come from; padding is 0."""
    rows = (torch.arange(SIZE[0]) + 1).view(-1, 1).expand(SIZE)
    columns = (torch.arange(SIZE[1]) + 1).view(1, -1).expand(SIZE)
    return torch.stack([rows, columns, torch.full(SIZE, 255)]).to(torch.uint8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(**changes: object) -> TrainTransform:
    """Geometry only, with pixel values left in 0-255."""
    base = TrainTransform(SIZE, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3, padding=3, erasing=0.0, vertical_flip=0.5)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def literal_geometry(image: Tensor, shown: Tensor) -> bool:
    """Whether `shown` is `image` flipped, shifted by at most 3 pixels and filled up by zeros, tried one by one."""
    for flips in ((), (-1,), (-2,), (-1, -2)):
        padded = torch.zeros(3, SIZE[0] + 6, SIZE[1] + 6)
        padded[:, 3:-3, 3:-3] = image.flip(flips) if flips else image
        for top in range(7):
            for left in range(7):
                if torch.equal(padded[:, top : top + SIZE[0], left : left + SIZE[1]], shown):
                    return True
    return False


def test_shared_geometry_shows_the_same_place() -> None:
    seen = set()
    for seed in range(40):
        result = plain()([coordinates()] * 3, seeded(seed)).round()
        assert torch.equal(result[0], result[1])
        assert torch.equal(result[0], result[2])
        assert literal_geometry(coordinates().float(), result[0])
        seen.add(tuple(result[0].flatten().int().tolist()))
    assert len(seen) > 20


def literal_reflection(image: Tensor, top: int, left: int, padding: int) -> Tensor:
    """The crop at (top, left) of the padded image, each pixel looked up by mirroring at the first and last pixel."""

    def mirror(position: int, size: int) -> int:
        position = abs(position)
        return position if position < size else 2 * (size - 1) - position

    height, width = image.shape[-2:]
    result = torch.empty_like(image)
    for row in range(height):
        for column in range(width):
            source = mirror(row + top - padding, height), mirror(column + left - padding, width)
            result[:, row, column] = image[:, source[0], source[1]]
    return result


@pytest.mark.parametrize(("top", "left"), [(0, 0), (3, 3), (6, 6), (1, 5)])
def test_reflected_padding_is_the_literal_mirror(top: int, left: int) -> None:
    image = coordinates()
    geometry = Geometry(flip=False, vertical_flip=False, top=top, left=left)
    assert torch.equal(apply_geometry(image, geometry, 3, "reflect"), literal_reflection(image, top, left, 3))
    assert torch.equal(apply_geometry(image[None], geometry, 3, "reflect")[0], literal_reflection(image, top, left, 3))


def test_reflected_padding_shows_no_black_and_shares_the_draws_of_zeros() -> None:
    bright = [torch.full((3, *SIZE), 200, dtype=torch.uint8)] * 3
    assert bool((plain(padding_mode="reflect", shared_geometry=False)(bright, seeded(0)).round() == 200).all())
    black = [plain()([coordinates()] * 3, seeded(seed)).round() for seed in range(20)]
    for seed, zeros in enumerate(black):
        reflected = plain(padding_mode="reflect")([coordinates()] * 3, seeded(seed)).round()
        assert torch.equal(reflected[zeros > 0], zeros[zeros > 0])
        assert bool((reflected > 0).all())


def test_independent_geometry_differs_between_modalities() -> None:
    different = 0
    for seed in range(20):
        result = plain(shared_geometry=False)([coordinates()] * 3, seeded(seed)).round()
        assert all(literal_geometry(coordinates().float(), image) for image in result)
        different += not torch.equal(result[0], result[1])
    assert different > 15


@pytest.mark.parametrize(("axis", "name"), [(-1, "flip"), (-2, "vertical_flip")])
def test_flips_obey_their_probability(axis: int, name: str) -> None:
    settings = {"flip": 0.0, "vertical_flip": 0.0, "padding": 0}
    image = coordinates()
    always = plain(**settings | {name: 1.0})([image], seeded(0)).round()
    never = plain(**settings)([image], seeded(0)).round()
    assert torch.equal(always[0], image.flip(axis).float())
    assert torch.equal(never[0], image.float())
    half = [plain(**settings | {name: 0.5})([image], seeded(seed)).round() for seed in range(200)]
    share = sum(torch.equal(result[0], image.flip(axis).float()) for result in half) / 200
    assert 0.4 < share < 0.6


def test_normalisation_and_test_transform_are_closed_forms() -> None:
    transform = TestTransform(SIZE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.25))
    image = coordinates()
    expected = (image.float() / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.4, 0.25])[
        :, None, None
    ]
    result = transform([image, None, image])
    assert torch.allclose(result[0], expected, atol=1e-6)
    assert torch.equal(result[1], torch.zeros(3, *SIZE))
    assert torch.equal(result[0], result[2])


@pytest.mark.parametrize("sizes", [[(5, 9), (20, 7), (16, 8)], [(30, 11)] * 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_any_sizes_are_resized_as_one_by_one(sizes: list[tuple[int, int]], interpolation: str) -> None:
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=seeded(1)) for size in sizes]
    transform = TestTransform(SIZE, interpolation=interpolation)  # type: ignore[arg-type]
    result = transform(images)
    assert result.shape == (3, 3, *SIZE)
    assert result.dtype == torch.float32
    for index, image in enumerate(images):
        assert torch.equal(result[index], transform([image])[0])


def test_missing_modality_is_zero_and_changes_no_other() -> None:
    transform = TrainTransform(SIZE, erasing=0.7, jitter=0.2, shared_geometry=False)
    images = [coordinates(), coordinates().flip(-1), coordinates().flip(-2)]
    for seed in range(10):
        whole = transform(images, seeded(seed))
        partial = transform([images[0], None, images[2]], seeded(seed))
        assert torch.equal(partial[1], torch.zeros(3, *SIZE))
        if float((whole[0] != partial[0]).sum()) == 0:  # the erasing noise of rgb comes before nir's draws
            assert torch.equal(whole[2], partial[2])
        else:
            raise AssertionError("the first modality must not depend on the second")


def test_jitter_is_a_gain_and_an_offset_a_modality() -> None:
    image = torch.stack([torch.full(SIZE, value, dtype=torch.uint8) for value in (51, 102, 153)])  # 0.2, 0.4, 0.6
    transform = TrainTransform(
        SIZE,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        flip=0,
        padding=0,
        erasing=0,
        jitter=0.1,  # type: ignore[arg-type]
    )
    result = transform([image] * 3, seeded(2))[:, :, 0, 0]  # (M, 3)
    gain = (result[:, 2] - result[:, 0]) / 0.4 - 1
    offset = result[:, 0] - 0.2 * (1 + gain)
    assert torch.allclose(result[:, 1], 0.4 * (1 + gain) + offset, atol=1e-6)
    assert float(gain.abs().max()) <= 0.1 + 1e-6
    assert float(offset.abs().max()) <= 0.1 + 1e-6
    assert len({round(float(value), 5) for value in gain}) == 3


def test_erasing_is_one_rectangle_of_noise() -> None:
    areas, noise, count = [], [], 0
    for seed in range(400):
        image = torch.full((3, 64, 32), 9.0)
        result = erase(image, 0.5, seeded(seed))
        changed = (result != 9.0).any(dim=0)
        if not changed.any():
            continue
        count += 1
        rows, columns = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert bool(box.all())
        areas.append(box.numel() / changed.numel())
        assert 0.25 < box.shape[0] / box.shape[1] < 4
        noise.append(result[:, changed].flatten())
    assert 0.4 < count / 400 < 0.6
    assert 0.015 < min(areas) < 0.05
    assert 0.28 < max(areas) < 0.36
    values = torch.cat(noise)
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.02
    assert torch.equal(erase(image, 0.0, seeded(0)), image)


def test_erasing_is_drawn_a_modality_and_the_input_stays() -> None:
    image = torch.full((3, *SIZE), 100, dtype=torch.uint8)
    result = TrainTransform(SIZE, padding=0, erasing=1.0)([image] * 3, seeded(0))
    assert not torch.equal(result[0], result[1])
    assert not torch.equal(result[1], result[2])
    assert bool((image == 100).all())


def test_same_generator_same_result() -> None:
    transform = TrainTransform(SIZE, jitter=0.1)
    images = [coordinates()] * 3
    assert torch.equal(transform(images, seeded(7)), transform(images, seeded(7)))
    assert not torch.equal(transform(images, seeded(7)), transform(images, seeded(8)))


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match="at least one image"):
        TestTransform(SIZE)([None, None, None])
    with pytest.raises(InputError, match=r"uint8 \(3, h, w\), given torch.float32 \(3, 4, 4\)"):
        TestTransform(SIZE)([torch.zeros(3, 4, 4)])
