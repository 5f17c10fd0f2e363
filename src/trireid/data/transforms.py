"""Resize images to uint8 pixels of one size, and normalise batches of them.

Resizing is done once, on the host. Random augmentation is in `trireid.data.augment` and runs on the batch's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from trireid.errors import InputError
from trireid.lazy import warn_renamed
from trireid.names import Interpolation

Channels = tuple[float, float, float]
Images = Sequence[Tensor | None]


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize and normalise one triplet, for example to embed a few images without a loader.

    Attributes:
        image_size: (height, width) of the result.
        mean, std: of each channel, in units of the pixel range [0, 1].
        interpolation: `bilinear` or `bicubic`, antialiased.

    Example:
        >>> transform = EvaluationTransform(image_size=(32, 16))
        >>> transform([torch.zeros(3, 64, 40, dtype=torch.uint8), None, None]).shape
        torch.Size([3, 3, 32, 16])
    """

    image_size: tuple[int, int]
    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    interpolation: Interpolation = "bilinear"

    def __call__(self, images: Images) -> Tensor:
        """Images of one triplet, uint8 `(3, h, w)` or None per modality -> `(M, 3, H, W)`, zeros where None."""
        pixels, present = resize_triplet(images, self.image_size, self.interpolation)
        return Normalise(self.mean, self.std)(pixels[None], present[None])[0]


@dataclass(frozen=True)
class Normalise:
    """Normalise a batch of uint8 pixels for evaluation, on the device of the batch.

    Attributes:
        mean, std: of each channel, in units of the pixel range [0, 1].

    Example:
        >>> white = torch.full((1, 3, 3, 2, 2), 255, dtype=torch.uint8)  # (B, M, 3, H, W)
        >>> Normalise()(white, torch.tensor([[True, True, False]]))[0, :, 0, 0, 0]
        tensor([1., 1., 0.])
    """

    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)

    def __call__(self, pixels: Tensor, present: Tensor) -> Tensor:
        """uint8 `(B, M, 3, H, W)` and `(B, M)` bool -> float32 `(B, M, 3, H, W)`, zeros where absent."""
        return normalise(pixels.float() / 255, self.mean, self.std) * present[:, :, None, None, None]


def resize_triplet(images: Images, size: tuple[int, int], interpolation: Interpolation) -> tuple[Tensor, Tensor]:
    """Resize one triplet: uint8 pixels `(M, 3, H, W)`, zeros where None, and presence `(M,)` bool.

    Raises:
        InputError: there is no image, or one is not uint8 `(3, h, w)`.

    Example:
        >>> image = torch.zeros(3, 64, 40, dtype=torch.uint8)
        >>> pixels, present = resize_triplet([image, None, None], (32, 16), "bilinear")
        >>> pixels.shape, present.tolist()
        (torch.Size([3, 3, 32, 16]), [True, False, False])
    """
    present = torch.tensor([image is not None for image in images])
    shown = [image for image in images if image is not None]
    if not shown:
        raise InputError("a triplet needs at least one image, but all modalities are None")
    for image in shown:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise InputError(f"images must be uint8 (3, h, w), given {image.dtype} {tuple(image.shape)}")
    resized = resize(shown, size, interpolation)  # (P, 3, H, W)
    if len(shown) == len(images):
        return resized, present
    pixels = resized.new_zeros(len(images), 3, *size)
    pixels[present] = resized
    return pixels, present


def resize(images: Sequence[Tensor], size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Resize P uint8 images `(3, h, w)` of any sizes to uint8 `(P, 3, H, W)`."""
    mode = InterpolationMode(interpolation)
    if len({image.shape for image in images}) == 1:  # a single call is faster
        stacked: Tensor = F.resize(torch.stack(list(images)), list(size), interpolation=mode, antialias=True)
        return stacked
    return torch.stack([F.resize(image, list(size), interpolation=mode, antialias=True) for image in images])


def normalise(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Subtract the mean of each channel and divide by its standard deviation; `(..., 3, H, W)` in [0, 1]."""
    return (images - _per_channel(mean, images.device)) / _per_channel(std, images.device)


@lru_cache(maxsize=16)
def _per_channel(values: Channels, device: torch.device) -> Tensor:
    """`(3, 1, 1)`; cached, because a copy to the device for each batch would make the host wait."""
    return torch.tensor(values, device=device)[:, None, None]


def __getattr__(name: str) -> Any:
    """Keep the name of 0.1.0 for one release."""
    if name == "TestTransform":
        warn_renamed(f"{__name__}.TestTransform", f"{__name__}.EvaluationTransform")
        return EvaluationTransform
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
