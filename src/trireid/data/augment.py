"""Training augmentation of a whole batch at once, on the device where its uint8 pixels are.

Every random draw depends only on the seed of the item, so neither the batch, the device nor the number of workers or
processes changes the result. Shapes: B batch, M modality, H, W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from trireid.data.blinding import blind
from trireid.data.randomness import seeded_generator, uniform_draws
from trireid.data.transforms import Channels, normalise
from trireid.names import PaddingMode

ERASING_AREA = (0.02, 0.33)
ERASING_ASPECT = (0.3, 1 / 0.3)
ERASING_ATTEMPTS = 10
NOISE_STARTS = 2**20
"""Positions of the noise table at which the noise of an erased rectangle may start."""

_GEOMETRY, _JITTER, _ERASING = 4, 2, 4 + 2 * ERASING_ATTEMPTS
NUM_DRAWS = _GEOMETRY + _JITTER + _ERASING  # per modality


@dataclass(frozen=True)
class TrainTransform:
    """Flips, padding with random crop, jitter, blinding, normalisation and random erasing, in this order.

    Source: the augmentation of DeMo (AAAI 2025) and its ancestors, https://github.com/924973292/DeMo.
    Deviation: DeMo draws flip and crop per modality, so the patches of the three do not show the same place; here
        they are shared unless `shared_geometry` is False. Vertical flip, reflection, jitter
        and blinding are additions.

    Attributes:
        mean, std: of each channel, in units of the pixel range [0, 1].
        flip, vertical_flip: probabilities.
        padding: pixels added on each side before the crop back to the size of the image.
        padding_mode: content of the added pixels: `zeros`, or the image reflected at its border (`reflect`).
        erasing: probability that a rectangle is erased, drawn independently per modality.
        jitter: gain and offset are drawn per modality from [-jitter, jitter], in units of the pixel range.
        shared_geometry: draw flips and crop once per triplet; False draws them once per modality.
        blinding: probability that some modalities of an item show almost nothing, see `trireid.data.blinding`.
    """

    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    flip: float = 0.5
    vertical_flip: float = 0.0
    padding: int = 10
    padding_mode: PaddingMode = "zeros"
    erasing: float = 0.5
    jitter: float = 0.0
    shared_geometry: bool = True
    blinding: float = 0.0

    def __call__(self, pixels: Tensor, seed: Tensor, present: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            pixels: `(B, M, 3, H, W)` uint8.
            seed: `(B,)` int64, the seed of each item's draws.
            present: `(B, M)` bool.

        Returns:
            `(B, M, 3, H, W)` float32, zeros for absent modalities; an absent modality does not affect the others.
        """
        batch, modalities = pixels.shape[:2]
        draws = uniform_draws(seed, modalities * NUM_DRAWS).view(batch, modalities, NUM_DRAWS)
        geometry, jitter, erasing = draws.split([_GEOMETRY, _JITTER, _ERASING], dim=-1)
        if self.shared_geometry:
            geometry = geometry[:, :1]  # (B, 1, 4), broadcast over the modalities
        images = self._move(pixels, geometry).float() / 255
        if self.jitter > 0:
            gain, offset = ((2 * jitter - 1) * self.jitter)[..., None, None, None].unbind(2)  # (B, M, 1, 1, 1)
            images = (images * (1 + gain) + offset).clamp(0, 1)
        if self.blinding > 0:
            table = noise_table(3 * images.shape[-2] * images.shape[-1], images.device)
            images = blind(images, seed, present, self.blinding, noise=table)
        images = normalise(images, self.mean, self.std)
        if self.erasing > 0:
            images = erase(images, erasing, self.erasing)
        return images * present[:, :, None, None, None]

    def _move(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Flips and crop by draws `(B, M or 1, 4)`."""
        corner = (draws[..., 2:] * (2 * self.padding + 1)).long()
        if self.padding == 0 and self.flip == 0 and self.vertical_flip == 0:
            return pixels
        return move(
            pixels,
            flip=draws[..., 0] < self.flip,
            vertical_flip=draws[..., 1] < self.vertical_flip,
            shift=corner - self.padding,
            mode=self.padding_mode,
        )


def move(pixels: Tensor, *, flip: Tensor, vertical_flip: Tensor, shift: Tensor, mode: PaddingMode = "zeros") -> Tensor:
    """Flip every image, then show it shifted: pixel (y, x) of the result is (y, x) + shift of the flipped image.

    Args:
        pixels: `(B, M, 3, H, W)`.
        flip, vertical_flip: `(B, M or 1)` bool, left to right and top to bottom.
        shift: `(B, M or 1, 2)` int64, rows and columns, each smaller than the side where `mode` is `reflect`.
        mode: what lies beyond the border: `zeros`, or the image reflected at its first and last pixel.

    Returns:
        `(B, M, 3, H, W)` in the data type of `pixels`.
    """
    height, width = pixels.shape[-2:]
    rows, row_inside = _source(height, shift[..., 0], vertical_flip, mode)  # (B, M or 1, H)
    columns, column_inside = _source(width, shift[..., 1], flip, mode)  # (B, M or 1, W)
    place = (rows[..., :, None] * width + columns[..., None, :]).flatten(-2)  # (B, M or 1, H * W)
    flat = pixels.flatten(-2)  # (B, M, 3, H * W)
    moved = flat.gather(-1, place[:, :, None].expand(flat.shape)).view_as(pixels)
    if mode == "reflect":
        return moved
    inside = row_inside[..., :, None] & column_inside[..., None, :]  # (B, M or 1, H, W)
    return moved * inside[:, :, None]


def _source(size: int, shift: Tensor, flipped: Tensor, mode: PaddingMode) -> tuple[Tensor, Tensor]:
    """Source row (or column) of each row of the result, and whether it lies inside: `(B, M or 1, size)` each."""
    place = torch.arange(size, device=shift.device) + shift[..., None]
    inside = (place >= 0) & (place < size)
    if mode == "reflect":
        place = place.abs()
        place = torch.where(place < size, place, 2 * (size - 1) - place)
    place = place.clamp(0, size - 1)
    return torch.where(flipped[..., None], size - 1 - place, place), inside


def erase(images: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Replace a random rectangle of each normalised image by standard normal noise, one value per pixel and channel.

    Its area is uniform in 2-33 % of the image and its aspect (height by width) log-uniform in 0.3-3.3; a rectangle
    that does not fit is drawn again, up to ten times, then the image stays as it is.

    Args:
        images: `(B, M, 3, H, W)`.
        draws: `(B, M, 24)` uniform in [0, 1).
        probability: that an image loses a rectangle, in [0, 1].

    Source: Zhong et al., Random Erasing Data Augmentation, AAAI 2020. Deviation: the noise is read from a table of
        fixed normal numbers at a drawn position, so it depends on the item alone and is the same on every device.
    """
    height, width = images.shape[-2:]
    chance, corner, start = draws[..., 0], draws[..., 1:3], draws[..., 3]
    area, aspect = draws[..., 4:].unflatten(-1, (ERASING_ATTEMPTS, 2)).unbind(-1)  # (B, M, attempts)
    area = height * width * (ERASING_AREA[0] + area * (ERASING_AREA[1] - ERASING_AREA[0]))
    low, high = math.log(ERASING_ASPECT[0]), math.log(ERASING_ASPECT[1])
    aspect = torch.exp(low + aspect * (high - low))
    rows, columns = ((area * aspect).sqrt().round().clamp(min=1), (area / aspect).sqrt().round().clamp(min=1))
    fits = (rows < height) & (columns < width)
    first = fits.int().argmax(dim=-1, keepdim=True)  # the first that fits; 0 where none does
    rows, columns = rows.gather(-1, first)[..., 0], columns.gather(-1, first)[..., 0]  # (B, M)
    erased = (chance < probability) & fits.any(dim=-1)
    top, left = (corner[..., 0] * (height - rows + 1)).floor(), (corner[..., 1] * (width - columns + 1)).floor()
    down = torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device)
    in_rows = (down >= top[..., None]) & (down < (top + rows)[..., None])  # (B, M, H)
    in_columns = (across >= left[..., None]) & (across < (left + columns)[..., None])  # (B, M, W)
    hidden = in_rows[..., :, None] & in_columns[..., None, :] & erased[..., None, None]  # (B, M, H, W)
    table = noise_table(3 * height * width, images.device)
    noise = table.unfold(0, 3 * height * width, 1)[(start * NOISE_STARTS).long()].view_as(images)
    return torch.where(hidden[:, :, None], noise, images)


@lru_cache(maxsize=4)
def noise_table(length: int, device: torch.device) -> Tensor:
    """Fixed standard normal numbers, `(NOISE_STARTS + length - 1,)` float32: `NOISE_STARTS` runs of `length`."""
    numbers = torch.randn(NOISE_STARTS + length - 1, generator=seeded_generator(0, "erasing noise"))
    return numbers.to(device)
