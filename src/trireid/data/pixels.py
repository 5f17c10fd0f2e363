"""The pixels of a data set: decoded from the files at each access, or read from a cache that is filled once.

The cache holds the pixels before any random augmentation: decoded, oriented, resized, uint8 `(n, M, 3, H, W)`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil
import torch
from torch import Tensor

from trireid.data.cache_file import SUFFIX, open_cache_file
from trireid.data.formats import quiet_decoders
from trireid.data.images import Progress, decode_sources, load_images, orient_sources
from trireid.data.ranges import NO_RANGES, Ranges
from trireid.data.records import ImageFacts, ImageSource, Record
from trireid.data.transforms import resize_triplet
from trireid.errors import ConfigError
from trireid.names import CacheName, Interpolation
from trireid.types import NUM_MODALITIES

if TYPE_CHECKING:
    from trireid.data.filling import Filler

_log = logging.getLogger(__name__)


MEMORY_SHARE = 0.5
"""Share of the host's free memory that `auto` may fill."""
DEVICE_SHARE = 0.25
"""Share of the free memory of a CUDA device; the model and its activations need most of it."""
DISK_SHARE = 0.5
_VERSION = 2  # of the content of a cache file


class Pixels(Protocol):
    """Resized uint8 pixels of a set, by position."""

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pixels uint8 `(B, M, 3, H, W)` and presence `(B, M)` bool, presence on the CPU."""


@dataclass(frozen=True)
class FilePixels:
    """Decodes the files at each call.

    Attributes:
        records: the triplets of the set.
        image_size: (height, width).
        interpolation: `bilinear` or `bicubic`.
        ranges: value range per modality for images of more than 8 bits.
    """

    records: Sequence[Record]
    image_size: tuple[int, int]
    interpolation: Interpolation
    ranges: Ranges = NO_RANGES

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `Pixels`.

        Raises:
            ImageError: an image cannot be read.
        """
        with quiet_decoders():
            items = [
                resize_triplet(load_images(self.records[position], self.ranges), self.image_size, self.interpolation)
                for position in positions
            ]
        pixels, present = zip(*items, strict=True)
        return torch.stack(pixels), torch.stack(present)


@dataclass(frozen=True)
class CachedPixels:
    """Reads from a tensor that holds the whole set.

    Attributes:
        pixels: `(n, M, 3, H, W)` uint8, in memory, on a device, or mapped from a file.
        present: `(n, M)` bool on the CPU.
    """

    pixels: Tensor
    present: Tensor

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `Pixels`; the pixels are on the device of the cache."""
        index = torch.tensor(positions)
        present = self.present[index]
        if self.pixels.device.type == "cuda":
            index = index.pin_memory().to(self.pixels.device, non_blocking=True)
        return self.pixels[index], present


def cache_size(num_records: int, image_size: tuple[int, int]) -> int:
    """Size of a filled cache in bytes."""
    return num_records * NUM_MODALITIES * 3 * image_size[0] * image_size[1]


def choose_cache(
    name: CacheName, *, size: int, device: torch.device, folder: Path, num_processes: int = 1
) -> CacheName:
    """Resolve `auto`; any other name is returned unchanged.

    `auto` becomes `device` if the set fits a quarter of the free memory of a CUDA device, else `memory` if it fits
    half of the host's free memory, else `disk` if it fits half of the free disk space, else `none`.

    Args:
        name: the setting `data.cache`.
        size: bytes of the filled cache.
        device: where training runs.
        folder: where `disk` would write.
        num_processes: processes on this host that each fill a cache.

    Raises:
        ConfigError: `device` without a CUDA device, or the set does not fit the free memory.
    """
    if name == "device" and device.type != "cuda":
        raise ConfigError("data.cache=device needs a CUDA device: use auto, memory, disk or none")
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    in_memory = free_memory()
    free = {"device": on_device, "memory": in_memory // num_processes}.get(name, size)
    if size > free:
        raise ConfigError(
            f"data.cache={name} needs {size / 1e9:.2f} GB for the pixels of a set, and {free / 1e9:.2f} GB are free: "
            "use auto, disk or none"
        )
    if name != "auto":
        return name
    if size < DEVICE_SHARE * on_device:
        return "device"
    if size * num_processes < MEMORY_SHARE * in_memory:
        return "memory"
    return "disk" if size < DISK_SHARE * shutil.disk_usage(_existing(folder)).free else "none"


def free_memory() -> int:
    """Free memory for this process in bytes: that of the host or, if less, that of its control group."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text()
        return min(free, int(limit) - int(used)) if limit != "max" else free
    except (OSError, ValueError):  # no control group of this kind
        return free


def default_cache_folder() -> Path:
    """The user's cache folder for decoded pixels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trireid" / "pixels"


def open_pixels(
    records: Sequence[Record],
    *,
    image_size: tuple[int, int],
    interpolation: Interpolation,
    cache: CacheName,
    device: torch.device,
    folder: Path | None = None,
    workers: int = 0,
    num_processes: int = 1,
    ranges: Ranges = NO_RANGES,
    report: Progress | None = None,
    name: str = "",
    filler: Filler | None = None,
) -> Pixels:
    """Open the pixels of a set; a cache is filled by this call, or in the background by a filler.

    Args:
        records: the triplets of the set.
        image_size, interpolation: (height, width) and method.
        cache: see `choose_cache`; `disk` is a file mapped into memory, which other runs on the same images share.
        device: where training runs.
        folder: of `disk`; None: the user's cache folder.
        workers: threads that decode.
        num_processes: processes on this host that each fill a cache.
        ranges: value range per modality for images of more than 8 bits, see `trireid.data.ranges`.
        report: called with (done, total) triplets while a cache is filled.
        name: name of the set in the log.
        filler: fills a cache in memory or on the device once it is started; its errors then show at `read`.

    Raises:
        ConfigError: the cache does not fit, or needs a CUDA device.
        ImageError, RunError: an image cannot be read, or the cache file cannot be written.
    """
    folder, label = default_cache_folder() if folder is None else folder, name and f"{name}: "
    size = cache_size(len(records), image_size)
    chosen = choose_cache(cache, size=size, device=device, folder=folder, num_processes=num_processes)
    if chosen == "none":
        _log.info("%s%d triplets, decoded from their files at each access (no cache)", label, len(records))
        return FilePixels(records, image_size, interpolation, ranges)
    where = {"device": f"on {device}", "memory": "in memory", "disk": f"in a file of {folder}"}[chosen]
    target = device if chosen == "device" else torch.device("cpu")
    if filler is not None and chosen != "disk":
        _log.info("%s%d triplets, %.1f MB of pixels, to be kept %s", label, len(records), size / 1e6, where)
        return filler.add(records, image_size=image_size, interpolation=interpolation, ranges=ranges, device=target)
    shape = (len(records), NUM_MODALITIES, 3, *image_size)

    def fill(pixels: Tensor) -> None:
        _decode_all(records, pixels, interpolation=interpolation, ranges=ranges, workers=workers, report=report)

    earlier = False
    if chosen == "disk":
        path = folder / f"{_fingerprint(records, image_size, interpolation, ranges)}{SUFFIX}"
        pixels, earlier = open_cache_file(path, shape, fill)
    else:
        fill(pixels := torch.empty(shape, dtype=torch.uint8))
        pixels = pixels.to(target)
    how = "decoded by an earlier run" if earlier else "decoded once"
    _log.info("%s%d triplets %s, %.1f MB of pixels kept %s", label, len(records), how, size / 1e6, where)
    return CachedPixels(pixels, presence_of(records))


def presence_of(records: Sequence[Record]) -> Tensor:
    """`(n, M)` bool, which images the records have."""
    return torch.tensor([[source is not None for source in record.images] for record in records])


def _decode_all(
    records: Sequence[Record],
    pixels: Tensor,
    *,
    interpolation: Interpolation,
    ranges: Ranges,
    workers: int,
    report: Progress | None,
) -> None:
    """Fill `pixels`; files that several records show in different orientations are decoded once."""
    files: dict[Path, ImageFacts] = {}
    image_size = (pixels.shape[-2], pixels.shape[-1])

    def decode(positions: list[int]) -> int:
        shown = [records[position] for position in positions]
        decoded = decode_group(shown, image_size, interpolation, ranges, files)
        for position, image in zip(positions, decoded, strict=True):
            pixels[position] = image
        return len(positions)

    done = 0
    with quiet_decoders():
        pool = ThreadPoolExecutor(max_workers=max(1, workers))
        try:
            for count in pool.map(decode, groups_of(records)):
                done += count
                if report is not None:
                    report(done, len(records))
        finally:
            pool.shutdown(cancel_futures=True)  # the first damaged image stops the rest
    log_turned(sum(facts.orientation != 1 for facts in files.values()), len(files))


def groups_of(records: Sequence[Record]) -> list[list[int]]:
    """Positions of the records, those together that show the same files in different orientations."""
    groups: dict[tuple[ImageSource | None, ...], list[int]] = {}
    for position, record in enumerate(records):
        groups.setdefault(record.images, []).append(position)
    return list(groups.values())


def decode_group(
    records: Sequence[Record],
    image_size: tuple[int, int],
    interpolation: Interpolation,
    ranges: Ranges,
    files: dict[Path, ImageFacts],
) -> list[Tensor]:
    """Pixels `(M, 3, H, W)` of records that show the same files, which are decoded once; `files` gets their facts.

    Raises:
        ImageError: an image cannot be read.
    """
    decoded = decode_sources(records[0], ranges, files.__setitem__)
    turned = (orient_sources(decoded, record.orientation) for record in records)
    return [resize_triplet(images, image_size, interpolation)[0] for images in turned]


def log_turned(num_turned: int, num_files: int) -> None:
    """Log how many files were rotated upright."""
    if num_turned:
        _log.info("%d of %d image files rotated upright by their EXIF orientation", num_turned, num_files)


def _fingerprint(
    records: Sequence[Record], image_size: tuple[int, int], interpolation: Interpolation, ranges: Ranges
) -> str:
    """Key of a cache file: it changes with the files, their order, the resizing and the value ranges.

    It includes the ctime of each file, which no program can set back: a file that is replaced by another one of the
    same size and date is noticed.
    """
    digest = hashlib.sha256(f"{_VERSION} {image_size} {interpolation} {ranges}".encode())
    for record in records:
        for source in record.images:
            if source is not None:
                state = source.path.stat()
                times = f"{state.st_mtime_ns} {state.st_ctime_ns}"
                named = f"{source.path.resolve()} {source.columns} {state.st_size} {times}"
                digest.update(named.encode(errors="backslashreplace"))  # a path may hold bytes that are not UTF-8
            digest.update(f"|{record.orientation}".encode())
    return digest.hexdigest()[:32]


def _existing(folder: Path) -> Path:
    return folder if folder.exists() or folder == folder.parent else _existing(folder.parent)
