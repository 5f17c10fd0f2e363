"""From the uint8 images of a triplet to a normalised `(M, 3, H, W)`; all draws come from an explicit generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from trireid.errors import InputError

Interpolation = Literal["bilinear", "bicubic"]
PaddingMode = Literal["zeros", "reflect"]
Channels = tuple[float, float, float]
Images = Sequence[Tensor | None]
Transform = Callable[[Images, Generator], Tensor]
"""(one uint8 `(3, h, w)` or None a modality, generator) -> `(M, 3, H, W)` float, zeros where None."""

ERASING_AREA = (0.02, 0.33)
ERASING_ASPECT = (0.3, 1 / 0.3)
ERASING_ATTEMPTS = 10


@dataclass(frozen=True)
class TestTransform:
    """Resize and normalise.

    Attributes:
        image_size: (height, width) of the result.
        mean, std: of each channel, in units of the pixel range [0, 1].
        interpolation: `bilinear` or `bicubic`, antialiased.
    """

    __test__ = False  # the name starts with Test, but pytest is not meant

    image_size: tuple[int, int]
    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    interpolation: Interpolation = "bilinear"

    def __call__(self, images: Images, generator: Generator | None = None) -> Tensor:
        """Images of one triplet -> `(M, 3, H, W)`; nothing is drawn, the generator is not used."""
        present = _present(images)
        pixels = resize(present, self.image_size, self.interpolation).float() / 255
        return _place(normalise(pixels, self.mean, self.std), images)


@dataclass(frozen=True)
class TrainTransform:
    """Resize, flips, padding with random crop, jitter, normalise, random erasing - in this order.

    Source: the augmentation of DeMo (AAAI 2025) and its ancestors, https://github.com/924973292/DeMo.
    Deviation: there each modality draws its own flip and crop, so that the patches of the three do not show the same
        place; here they share them unless `shared_geometry` is False. Vertical flip, reflection and jitter are
        additions.

    Attributes:
        image_size: (height, width) of the result.
        mean, std: of each channel, in units of the pixel range [0, 1].
        flip, vertical_flip: probabilities.
        padding: pixels added on each side before the crop back to `image_size`.
        padding_mode: what they show, `zeros` or the image reflected at its border (`reflect`).
        erasing: probability that a modality loses a rectangle, drawn a modality.
        jitter: gain and offset of a modality are drawn from +-jitter, in units of the pixel range.
        shared_geometry: draw flips and crop once a triplet; False draws them once a modality.
        interpolation: `bilinear` or `bicubic`, antialiased.
    """

    image_size: tuple[int, int]
    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    flip: float = 0.5
    vertical_flip: float = 0.0
    padding: int = 10
    padding_mode: PaddingMode = "zeros"
    erasing: float = 0.5
    jitter: float = 0.0
    shared_geometry: bool = True
    interpolation: Interpolation = "bicubic"

    def __call__(self, images: Images, generator: Generator) -> Tensor:
        """Images of one triplet -> `(M, 3, H, W)`, augmented by draws from the generator.

        Every modality takes its draws whether it is present or not, so that a missing one changes no other.
        """
        present = _present(images)
        pixels = resize(present, self.image_size, self.interpolation)  # (P, 3, H, W) uint8
        draws = [self._draw_geometry(generator)]
        draws += [draws[0] if self.shared_geometry else self._draw_geometry(generator) for _ in images[1:]]
        shown = [draw for draw, image in zip(draws, images, strict=True) if image is not None]
        if self.shared_geometry:
            pixels = apply_geometry(pixels, shown[0], self.padding, self.padding_mode)
        else:
            pixels = torch.stack(
                [
                    apply_geometry(image, draw, self.padding, self.padding_mode)
                    for image, draw in zip(pixels, shown, strict=True)
                ]
            )
        pixels = pixels.float() / 255
        if self.jitter > 0:
            gain_offset = (2 * torch.rand(len(images), 2, generator=generator) - 1) * self.jitter
            kept = gain_offset[[image is not None for image in images]]  # (P, 2)
            pixels = (pixels * (1 + kept[:, 0, None, None, None]) + kept[:, 1, None, None, None]).clamp(0, 1)
        result = _place(normalise(pixels, self.mean, self.std), images)  # (M, 3, H, W)
        for index, image in enumerate(images):
            erased = erase(result[index], self.erasing, generator)
            if image is not None:
                result[index] = erased
        return result

    def _draw_geometry(self, generator: Generator) -> Geometry:
        chances = torch.rand(2, generator=generator)
        corner = torch.randint(0, 2 * self.padding + 1, (2,), generator=generator)
        return Geometry(
            flip=bool(chances[0] < self.flip),
            vertical_flip=bool(chances[1] < self.vertical_flip),
            top=int(corner[0]),
            left=int(corner[1]),
        )


@dataclass(frozen=True)
class Geometry:
    """One draw of flips and of the crop's corner in the padded image."""

    flip: bool
    vertical_flip: bool
    top: int
    left: int


def apply_geometry(images: Tensor, geometry: Geometry, padding: int, mode: PaddingMode = "zeros") -> Tensor:
    """Flip, pad and crop `(..., 3, H, W)` back to its own size."""
    height, width = images.shape[-2:]
    if geometry.flip:
        images = images.flip(-1)
    if geometry.vertical_flip:
        images = images.flip(-2)
    if padding == 0:
        return images
    padded: Tensor = F.pad(images, [padding], padding_mode="constant" if mode == "zeros" else mode)
    return padded[..., geometry.top : geometry.top + height, geometry.left : geometry.left + width]


def resize(images: Sequence[Tensor], size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Resize P uint8 images `(3, h, w)` of any sizes to one uint8 `(P, 3, H, W)`."""
    mode = InterpolationMode(interpolation)
    if len({image.shape for image in images}) == 1:  # one call where the sizes agree: it is most of the time spent
        stacked: Tensor = F.resize(torch.stack(list(images)), list(size), interpolation=mode, antialias=True)
        return stacked
    return torch.stack([F.resize(image, list(size), interpolation=mode, antialias=True) for image in images])


def normalise(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """`(..., 3, H, W)` in [0, 1] -> minus mean, by standard deviation, a channel."""
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def erase(image: Tensor, probability: float, generator: Generator) -> Tensor:
    """Replace a random rectangle of a normalised `(3, H, W)` by standard normal noise, a value a pixel and channel.

    Its area is uniform in 2-33 % of the image and its aspect (height by width) log-uniform in 0.3-3.3; a rectangle
    that does not fit is drawn again, up to ten times, then the image stays as it is.
    """
    if not float(torch.rand((), generator=generator)) < probability:
        return image
    channels, height, width = image.shape
    low, high = math.log(ERASING_ASPECT[0]), math.log(ERASING_ASPECT[1])
    for _ in range(ERASING_ATTEMPTS):
        area_draw, aspect_draw = torch.rand(2, generator=generator).tolist()
        area = height * width * (ERASING_AREA[0] + area_draw * (ERASING_AREA[1] - ERASING_AREA[0]))
        aspect = math.exp(low + aspect_draw * (high - low))
        rows, columns = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        if rows < height and columns < width:
            top = int(torch.randint(0, height - rows + 1, (), generator=generator))
            left = int(torch.randint(0, width - columns + 1, (), generator=generator))
            erased = image.clone()
            noise = torch.randn(channels, rows, columns, generator=generator)
            erased[:, top : top + rows, left : left + columns] = noise
            return erased
    return image


def _present(images: Images) -> list[Tensor]:
    present = [image for image in images if image is not None]
    if not present:
        raise InputError("a triplet needs at least one image, all modalities given are None")
    for image in present:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise InputError(f"images must be uint8 (3, h, w), given {image.dtype} {tuple(image.shape)}")
    return present


def _place(pixels: Tensor, images: Images) -> Tensor:
    """Put P images back among M modalities: `(P, 3, H, W)` -> `(M, 3, H, W)`, zeros where absent."""
    if len(pixels) == len(images):
        return pixels
    result = pixels.new_zeros(len(images), *pixels.shape[1:])
    result[[image is not None for image in images]] = pixels
    return result
