from __future__ import annotations

import pytest
import torch

from trireid.data.transforms import EvaluationTransform, Normalise, resize_triplet
from trireid.errors import InputError

SIZE = (16, 8)
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.4, 0.25)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_normalisation_is_the_closed_form_and_absent_modalities_are_zero() -> None:
    pixels = noise(2, 3, 3, *SIZE)
    present = torch.tensor([[True, True, True], [True, False, True]])
    result = Normalise(MEAN, STD)(pixels, present)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        expected = (pixels[:, :, channel].float() / 255 - mean) / std
        assert torch.allclose(result[present][:, channel], expected[present], atol=1e-6)
    assert torch.equal(result[1, 1], torch.zeros(3, *SIZE))


def test_one_triplet_equals_its_row_of_a_batch() -> None:
    images = [noise(3, 20, 9, seed=1), None, noise(3, 30, 7, seed=2)]
    pixels, present = resize_triplet(images, SIZE, "bilinear")
    assert present.tolist() == [True, False, True]
    assert not pixels[1].any()
    alone = EvaluationTransform(SIZE, mean=MEAN, std=STD)(images)
    assert torch.equal(alone, Normalise(MEAN, STD)(pixels[None], present[None])[0])


@pytest.mark.parametrize("sizes", [[(5, 9), (20, 7), (16, 8)], [(30, 11)] * 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_any_sizes_are_resized_as_one_by_one(sizes: list[tuple[int, int]], interpolation: str) -> None:
    images = [noise(3, *size, seed=1) for size in sizes]
    result, _ = resize_triplet(images, SIZE, interpolation)  # type: ignore[arg-type]
    assert result.shape == (3, 3, *SIZE)
    assert result.dtype == torch.uint8
    for index, image in enumerate(images):
        assert torch.equal(result[index], resize_triplet([image], SIZE, interpolation)[0][0])  # type: ignore[arg-type]


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match="at least one image"):
        EvaluationTransform(SIZE)([None, None, None])
    with pytest.raises(InputError, match=r"uint8 \(3, h, w\), given torch.float32 \(3, 4, 4\)"):
        EvaluationTransform(SIZE)([torch.zeros(3, 4, 4)])
