"""From items to the pixels that a model takes: files, arrays, PIL images and tensors, cut by their boxes, resized."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trireid.data.formats import Values
from trireid.data.images import ImageError, read_image, to_pixels
from trireid.data.labels import LabelMap
from trireid.data.ranges import NO_RANGES, Ranges
from trireid.data.transforms import resize_triplet
from trireid.embedding.items import Box, Item
from trireid.errors import InputError, TrireidError, printable
from trireid.names import MODALITIES, Interpolation
from trireid.types import NUM_MODALITIES, UNKNOWN


@dataclass(frozen=True)
class BadItem:
    """An item that was left out: its number in the call, its name, and why."""

    number: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class DecodedItem:
    """The pixels of one item: uint8 `(M, 3, H, W)`, presence `(M,)` bool, camera index, and boxes that were cut."""

    pixels: Tensor
    present: Tensor
    camera: int
    num_cut: int


@dataclass(frozen=True)
class DecodedItems:
    """The pixels of some items that follow each other.

    Attributes:
        numbers: of the items in the call; without those that could not be read.
        pixels: uint8 `(n, M, 3, H, W)`.
        present: `(n, M)` bool.
        camera: `(n,)` int64, see `Batch.camera`.
        bad: items that could not be read.
        num_cut: boxes that reached beyond their image.
        strange: cameras that the model does not know.
        seconds: that the decoding took, of one core.
    """

    numbers: list[int]
    pixels: Tensor
    present: Tensor
    camera: Tensor
    bad: list[BadItem] = field(default_factory=list)
    num_cut: int = 0
    strange: set[str] = field(default_factory=set)
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def num_read(self) -> int:
        """Items, with those that could not be read."""
        return len(self.numbers) + len(self.bad)


@dataclass(frozen=True)
class ItemDecoder:
    """How a model's items are read; it can be sent to other processes.

    Attributes:
        image_size: (height, width) of the result.
        interpolation: `bilinear` or `bicubic`.
        ranges: value range per modality for images of more than 8 bits.
        modalities: that are read; images of others are not opened.
        label_map: knows the cameras.
    """

    image_size: tuple[int, int]
    interpolation: Interpolation
    ranges: Ranges = NO_RANGES
    modalities: tuple[str, ...] = MODALITIES
    label_map: LabelMap = field(default_factory=lambda: LabelMap((), ()))

    def decode(self, item: Item) -> DecodedItem:
        """Decode one item.

        Raises:
            InputError: it has no image of the modalities that are read, or a box lies outside of its image.
            ImageError: an image cannot be read.
        """
        if not any(name in self.modalities for name in item.images):
            given = f"only {', '.join(item.images)}" if item.images else "no image"
            raise InputError(f"it has {given}; the model reads {', '.join(self.modalities)}")
        images: list[Tensor | None] = []
        num_cut = 0
        for name, value_range in zip(MODALITIES, self.ranges, strict=True):
            if name not in item.images or name not in self.modalities:
                images.append(None)
                continue
            given = item.images[name]
            source = os.fspath(given) if isinstance(given, str | os.PathLike) else f"the {name} image"
            values, cut = cut_box(values_of(given, source), item.box_of(name), source)
            images.append(to_pixels(source, values, value_range, name))
            num_cut += cut
        pixels, present = resize_triplet(images, self.image_size, self.interpolation)
        return DecodedItem(pixels, present, self.label_map.camera_index(item.camera), num_cut)

    def decode_all(self, numbered: Sequence[tuple[int, Item]]) -> DecodedItems:
        """Decode items with their numbers in the call; those that cannot be read are listed in the result."""
        started = time.perf_counter()
        decoded: list[tuple[int, DecodedItem]] = []
        bad, strange = [], set()
        for number, item in numbered:
            try:
                decoded.append((number, self.decode(item)))
            except TrireidError as error:
                name = f"item {number}" if item.key is None else f"item '{printable(item.key, limit=80)}'"
                bad.append(BadItem(number, name, printable(str(error), limit=600)))
                continue
            if item.camera is not None and decoded[-1][1].camera == UNKNOWN:
                strange.add(item.camera)
        return DecodedItems(
            numbers=[number for number, _ in decoded],
            pixels=_stacked([each.pixels for _, each in decoded], (NUM_MODALITIES, 3, *self.image_size), torch.uint8),
            present=_stacked([each.present for _, each in decoded], (NUM_MODALITIES,), torch.bool),
            camera=torch.tensor([each.camera for _, each in decoded], dtype=torch.int64),
            bad=bad,
            num_cut=sum(each.num_cut for _, each in decoded),
            strange=strange,
            seconds=time.perf_counter() - started,
        )


def join_decoded(parts: Sequence[DecodedItems], *, pin: bool = False) -> DecodedItems:
    """Put parts together, in their order; with `pin` the pixels are copied into page-locked memory."""
    if len(parts) == 1 and not pin:
        return parts[0]
    first = parts[0].pixels
    pixels = torch.empty(sum(map(len, parts)), *first.shape[1:], dtype=first.dtype, pin_memory=pin)
    torch.cat([part.pixels for part in parts], out=pixels)
    return DecodedItems(
        numbers=[number for part in parts for number in part.numbers],
        pixels=pixels,
        present=torch.cat([part.present for part in parts]),
        camera=torch.cat([part.camera for part in parts]),
        bad=[each for part in parts for each in part.bad],
        num_cut=sum(part.num_cut for part in parts),
        strange=set().union(*(part.strange for part in parts)),
        seconds=sum(part.seconds for part in parts),
    )


def values_of(given: Any, source: str) -> Values:
    """The values `(h, w)` or `(h, w, 3)` of an image, upright, in its own bit depth.

    Args:
        given: path, numpy array `(h, w)` or `(h, w, 3)`, PIL image, or tensor `(3, h, w)` or `(1, h, w)`.
        source: what an error names.

    Raises:
        ImageError: a file cannot be read, or the array is no image.
    """
    if isinstance(given, str | os.PathLike):
        try:
            return read_image(Path(given)).values
        except ValueError as error:  # a NUL in the path
            raise ImageError(f"{printable(source)}: cannot be read ({error})") from error
    if isinstance(given, Image.Image):
        upright = ImageOps.exif_transpose(given)
        deep = upright.mode.startswith(("I", "F"))
        return _checked(np.asarray(upright if deep else upright.convert("RGB")), source)
    if isinstance(given, Tensor):
        if given.ndim != 3 or given.shape[0] not in (1, 3):
            raise ImageError(f"{source} is a tensor of shape {tuple(given.shape)}: give (3, h, w) or (1, h, w)")
        given = given.detach().cpu().permute(1, 2, 0).numpy()
    if not isinstance(given, np.ndarray):
        raise ImageError(
            f"{source} is a {type(given).__name__}: give a path, a numpy array, a PIL image or a torch tensor"
        )
    return _checked(given, source)


def _checked(values: Values, source: str) -> Values:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.size == 0 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3):
        raise ImageError(f"{source} has the shape {values.shape}: give (h, w) or (h, w, 3) with h and w above 0")
    if values.dtype.kind not in "iuf":
        raise ImageError(f"{source} holds {values.dtype} values: give uint8, or deeper numbers with a known range")
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError(f"{source} holds NaN or infinity: replace them by numbers")
    # torch takes writable memory in the byte order of the machine, without steps backwards.
    return np.require(values, dtype=values.dtype.newbyteorder("="), requirements=["C", "W"])


def cut_box(values: Values, box: Box | None, source: str) -> tuple[Values, bool]:
    """The part of an image in a box, widened to whole pixels, and whether the box reached beyond the image.

    Raises:
        InputError: the box lies outside of the image.
    """
    if box is None:
        return values, False
    height, width = values.shape[:2]
    left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise InputError(
            f"the box ({', '.join(f'{each:g}' for each in box)}) lies outside of {source}, which has {width} x "
            f"{height} pixels (width x height); boxes are left, top, right, bottom"
        )
    inside = values[max(0, top) : min(height, bottom), max(0, left) : min(width, right)]
    return np.ascontiguousarray(inside), left < 0 or top < 0 or right > width or bottom > height


def only_files(images: Mapping[str, Any]) -> bool:
    """Whether all images of an item are paths, which are cheap to send to another process."""
    return all(isinstance(image, str | os.PathLike) for image in images.values())


def _stacked(rows: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.stack(list(rows)) if rows else torch.zeros(0, *shape, dtype=dtype)
