"""From items to the pixels that a model takes: files, arrays, PIL images and tensors, cut by their boxes, resized."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trireid.data.images import to_pixels
from trireid.data.labels import LabelMap
from trireid.data.ranges import NO_RANGES, Ranges
from trireid.data.transforms import resize_triplet
from trireid.embedding.items import Item
from trireid.embedding.reading import cut_box, levels_of, values_of
from trireid.embedding.streaming import BadItem, bad_item
from trireid.errors import InputError, TrireidError
from trireid.names import MODALITIES, Interpolation
from trireid.types import NUM_MODALITIES, UNKNOWN


@dataclass(frozen=True)
class DecodedItem:
    """The pixels of one item.

    Attributes:
        pixels: uint8 `(M, 3, H, W)`.
        present: `(M,)` bool.
        camera: index, see `Batch.camera`.
        num_cut: boxes that reached beyond their image.
        shallow: modalities whose image has 8 bits, though there is a range for deeper ones.
    """

    pixels: Tensor
    present: Tensor
    camera: int
    num_cut: int
    shallow: tuple[str, ...]


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
        shallow: images by modality that have 8 bits, though there is a range for deeper ones.
        strange: cameras that the model does not know.
        known: cameras that it knows.
        seconds: that the decoding took, of one core.
    """

    numbers: list[int]
    pixels: Tensor
    present: Tensor
    camera: Tensor
    bad: list[BadItem] = field(default_factory=list)
    num_cut: int = 0
    shallow: Counter[str] = field(default_factory=Counter)
    strange: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
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
        num_cut, shallow = 0, []
        for name, value_range in zip(MODALITIES, self.ranges, strict=True):
            if name not in item.images or name not in self.modalities:
                images.append(None)
                continue
            given = item.images[name]
            source = os.fspath(given) if isinstance(given, str | os.PathLike) else f"the {name} image"
            values, cut = cut_box(values_of(given, source), item.box_of(name), source)
            images.append(to_pixels(source, levels_of(given, values, value_range, source, name)))
            num_cut += cut
            if values.dtype.name == "uint8" and value_range is not None:
                shallow.append(name)
        pixels, present = resize_triplet(images, self.image_size, self.interpolation)
        return DecodedItem(pixels, present, self.label_map.camera_index(item.camera), num_cut, tuple(shallow))

    def decode_all(self, numbered: Sequence[tuple[int, Item]]) -> DecodedItems:
        """Decode items with their numbers in the call; those that cannot be read are listed in the result."""
        started = time.perf_counter()
        decoded: list[tuple[int, DecodedItem]] = []
        bad: list[BadItem] = []
        known: set[str] = set()
        strange: set[str] = set()
        for number, item in numbered:
            try:
                decoded.append((number, self.decode(item)))
            except TrireidError as error:
                bad.append(bad_item(number, item, error))
                continue
            if item.camera is not None:
                (strange if decoded[-1][1].camera == UNKNOWN else known).add(item.camera)
        return DecodedItems(
            numbers=[number for number, _ in decoded],
            pixels=_stacked([each.pixels for _, each in decoded], (NUM_MODALITIES, 3, *self.image_size), torch.uint8),
            present=_stacked([each.present for _, each in decoded], (NUM_MODALITIES,), torch.bool),
            camera=torch.tensor([each.camera for _, each in decoded], dtype=torch.int64),
            bad=bad,
            num_cut=sum(each.num_cut for _, each in decoded),
            shallow=Counter(name for _, each in decoded for name in each.shallow),
            strange=strange,
            known=known,
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
        shallow=sum((part.shallow for part in parts), Counter()),
        strange=set().union(*(part.strange for part in parts)),
        known=set().union(*(part.known for part in parts)),
        seconds=sum(part.seconds for part in parts),
    )


def only_files(images: Mapping[str, Any]) -> bool:
    """Whether all images of an item are paths, which are cheap to send to another process."""
    return all(isinstance(image, str | os.PathLike) for image in images.values())


def _stacked(rows: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.stack(list(rows)) if rows else torch.zeros(0, *shape, dtype=dtype)
