"""Augmentation of a batch against literal definitions, one image and one pixel at a time."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from trireid.data.augment import ERASING_ATTEMPTS, TrainTransform, erase, move
from trireid.data.randomness import uniform_draws

SIZE = (16, 8)


def coordinates() -> Tensor:
    """Red is 1 + row, green is 1 + column, blue 255: pixel values say where they come from; padding is 0."""
    rows = (torch.arange(SIZE[0]) + 1).view(-1, 1).expand(SIZE)
    columns = (torch.arange(SIZE[1]) + 1).view(1, -1).expand(SIZE)
    return torch.stack([rows, columns, torch.full(SIZE, 255)]).to(torch.uint8)


def batch(size: int, modalities: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels `(B, M, 3, H, W)`, seeds and presence of copies of `coordinates`."""
    pixels = coordinates().expand(size, modalities, -1, -1, -1)
    return pixels, torch.arange(size), torch.ones(size, modalities, dtype=torch.bool)


def plain(**changes: object) -> TrainTransform:
    """Geometry only, with pixel values left in 0-255."""
    base = TrainTransform(mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3, padding=3, erasing=0.0, vertical_flip=0.5)
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


def literal_move(image: Tensor, *, flip: bool, vertical_flip: bool, shift: tuple[int, int], mode: str) -> Tensor:
    """Each pixel looked up on its own in the flipped image, by mirroring or black beyond the border."""

    def mirror(position: int, size: int) -> int:
        position = abs(position)
        return position if position < size else 2 * (size - 1) - position

    if flip:
        image = image.flip(-1)
    if vertical_flip:
        image = image.flip(-2)
    height, width = image.shape[-2:]
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row + shift[0], column + shift[1]
            if mode == "reflect":
                y, x = mirror(y, height), mirror(x, width)
            if 0 <= y < height and 0 <= x < width:
                result[:, row, column] = image[:, y, x]
    return result


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_moves_equal_the_literal_lookup(mode: str) -> None:
    cases = [(f, v, s) for f in (False, True) for v in (False, True) for s in ((0, 0), (3, -3), (-2, 1))]
    flip, vertical = (torch.tensor([[case[i]] for case in cases]) for i in (0, 1))
    shift = torch.tensor([[case[2]] for case in cases])
    pixels = coordinates().expand(len(cases), 2, -1, -1, -1)
    moved = move(pixels, flip=flip, vertical_flip=vertical, shift=shift, mode=mode)  # type: ignore[arg-type]
    for row, (f, v, s) in enumerate(cases):
        expected = literal_move(coordinates(), flip=f, vertical_flip=v, shift=s, mode=mode)
        assert torch.equal(moved[row, 0], expected)
        assert torch.equal(moved[row, 1], expected)


def test_shared_geometry_shows_the_same_place() -> None:
    result = plain()(*batch(40)).round()
    assert torch.equal(result[:, 0], result[:, 1])
    assert torch.equal(result[:, 0], result[:, 2])
    assert all(literal_geometry(coordinates().float(), image) for image in result[:, 0])
    assert len({tuple(image.flatten().int().tolist()) for image in result[:, 0]}) > 20


def test_independent_geometry_differs_between_modalities() -> None:
    result = plain(shared_geometry=False)(*batch(20)).round()
    assert all(literal_geometry(coordinates().float(), image) for image in result.flatten(0, 1))
    assert sum(not torch.equal(each[0], each[1]) for each in result) > 15


def test_reflected_padding_shows_no_black_and_shares_the_draws_of_zeros() -> None:
    zeros, reflected = plain()(*batch(20)).round(), plain(padding_mode="reflect")(*batch(20)).round()
    assert bool((zeros == 0).any())
    assert bool((reflected > 0).all())
    assert torch.equal(reflected[zeros > 0], zeros[zeros > 0])


@pytest.mark.parametrize(("axis", "name"), [(-1, "flip"), (-2, "vertical_flip")])
def test_flips_obey_their_probability(axis: int, name: str) -> None:
    settings = {"flip": 0.0, "vertical_flip": 0.0, "padding": 0}
    image = coordinates().float()
    assert torch.equal(plain(**settings | {name: 1.0})(*batch(1)).round()[0, 0], image.flip(axis))
    assert torch.equal(plain(**settings)(*batch(1)).round()[0, 0], image)
    half = plain(**settings | {name: 0.5})(*batch(400)).round()
    share = sum(torch.equal(result[0], image.flip(axis)) for result in half) / 400
    assert 0.4 < share < 0.6


def test_an_item_looks_the_same_whatever_its_batch() -> None:
    transform = TrainTransform(jitter=0.1)
    pixels, seed, present = batch(12)
    whole = transform(pixels, seed, present)
    order = torch.tensor([7, 2, 11])
    assert torch.equal(transform(pixels[order], seed[order], present[order]), whole[order])
    assert torch.equal(transform(pixels, seed, present), whole)
    assert not torch.equal(transform(pixels, seed + 100, present), whole)


def test_missing_modality_is_zero_and_changes_no_other() -> None:
    transform = TrainTransform(erasing=0.7, jitter=0.2, shared_geometry=False)
    pixels, seed, present = batch(10)
    whole = transform(pixels, seed, present)
    lacking = present.clone()
    lacking[:, 1] = False
    partial = transform(pixels, seed, lacking)
    assert not partial[:, 1].any()
    assert torch.equal(partial[:, [0, 2]], whole[:, [0, 2]])


def test_jitter_is_a_gain_and_an_offset_a_modality() -> None:
    image = torch.stack([torch.full(SIZE, value, dtype=torch.uint8) for value in (51, 102, 153)])  # 0.2, 0.4, 0.6
    transform = TrainTransform((0.0,) * 3, (1.0,) * 3, flip=0, padding=0, erasing=0, jitter=0.1)  # type: ignore[arg-type]
    pixels = image.expand(1, 3, -1, -1, -1)
    result = transform(pixels, torch.tensor([2]), torch.ones(1, 3, dtype=torch.bool))[0, :, :, 0, 0]  # (M, 3)
    gain = (result[:, 2] - result[:, 0]) / 0.4 - 1
    offset = result[:, 0] - 0.2 * (1 + gain)
    assert torch.allclose(result[:, 1], 0.4 * (1 + gain) + offset, atol=1e-6)
    assert float(gain.abs().max()) <= 0.1 + 1e-6
    assert float(offset.abs().max()) <= 0.1 + 1e-6
    assert len({round(float(value), 5) for value in gain}) == 3


def test_erasing_is_one_rectangle_of_noise() -> None:
    images = torch.full((400, 1, 3, 64, 32), 9.0)
    draws = uniform_draws(torch.arange(400), 4 + 2 * ERASING_ATTEMPTS)[:, None]
    results = erase(images, draws, 0.5)[:, 0]
    areas, noise, places = [], [], set()
    for result in results:
        changed = (result != 9.0).any(dim=0)
        if not changed.any():
            continue
        rows, columns = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert bool(box.all())
        areas.append(box.numel() / changed.numel())
        assert 0.25 < box.shape[0] / box.shape[1] < 4
        places.add((int(rows[0]), int(columns[0])))
        noise.append(result[:, changed].flatten())
    assert 0.4 < len(areas) / 400 < 0.6
    assert 0.015 < min(areas) < 0.05
    assert 0.28 < max(areas) < 0.36
    assert len(places) > 150
    values = torch.cat(noise)
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.02
    assert torch.equal(erase(images, draws, 0.0), images)


def test_erasing_is_drawn_a_modality_and_the_input_stays() -> None:
    pixels = torch.full((1, 3, 3, *SIZE), 100, dtype=torch.uint8)
    result = TrainTransform(padding=0, erasing=1.0)(pixels, torch.tensor([0]), torch.ones(1, 3, dtype=torch.bool))[0]
    assert not torch.equal(result[0], result[1])
    assert not torch.equal(result[1], result[2])
    assert bool((pixels == 100).all())


def test_draws_are_uniform_and_equal_the_literal_generator() -> None:
    def literal(seed: int, place: int) -> float:
        def mix(bits: int) -> int:
            bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
            bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % 2**64
            return bits ^ (bits >> 31)

        return (mix((mix(seed % 2**64) + place * 0x9E3779B97F4A7C15) % 2**64) >> 40) / 2**24

    seeds = torch.tensor([0, 1, 2**62 - 1, 12345678901234567])
    draws = uniform_draws(seeds, 6)
    assert draws.tolist() == [[literal(int(seed), place) for place in range(1, 7)] for seed in seeds]
    many = uniform_draws(torch.arange(20000), 4)
    assert torch.allclose(many.mean(0), torch.full((4,), 0.5), atol=0.01)
    assert torch.allclose(many.var(0), torch.full((4,), 1 / 12), atol=0.002)
    assert float((torch.corrcoef(many.T) - torch.eye(4)).abs().max()) < 0.03
    assert float(torch.corrcoef(torch.stack([many[:-1, 0], many[1:, 0]]))[0, 1].abs()) < 0.03  # neighbouring seeds


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_cuda_device_gives_the_same_images() -> None:
    transform = TrainTransform(jitter=0.1, mean=(0.1, 0.2, 0.3))
    arguments = batch(16)
    there = transform(*(each.cuda() for each in arguments)).cpu()
    assert torch.allclose(there, transform(*arguments), atol=1e-5)


def test_blinding_leaves_one_modality_its_sight_and_the_others_almost_nothing() -> None:
    settings = {"flip": 0.0, "padding": 0, "erasing": 0.0}
    pixels, seed, present = batch(200)
    present[:20, 1] = False
    clear = plain(**settings)(pixels, seed, present)
    veiled = plain(**settings, blinding=1.0)(pixels, seed, present)
    changed = (veiled != clear).flatten(2).any(dim=2)  # (B, M)
    seeing = present.sum(dim=1) - changed.sum(dim=1)
    assert not changed[~present].any()
    assert bool((changed.any(dim=1) & (seeing >= 1)).all())
    assert len({tuple(row) for row in changed[20:].tolist()}) == 6
    contrast = veiled.flatten(2).std(dim=2) / clear.flatten(2).std(dim=2)
    assert float(contrast[changed].max()) < 0.5
    few = plain(**settings, blinding=0.25)(pixels, seed, present)
    assert 0.15 < float((few != clear).flatten(1).any(dim=1).float().mean()) < 0.35
    assert torch.equal(plain(**settings, blinding=1.0)(pixels[5:6], seed[5:6], present[5:6]), veiled[5:6])
