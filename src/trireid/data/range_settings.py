"""The value range of each modality: from the settings, from a checkpoint, or measured on the training images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trireid.config.schema import Config, RangeConfig, ValueRange
from trireid.data.formats import quiet_decoders
from trireid.data.images import columns_of, is_deep_file
from trireid.data.ranges import MAX_FILES, PERCENTILES, Ranges, evenly_spaced, own_range, sample
from trireid.data.reading import read_image
from trireid.data.records import ImageSource, Record
from trireid.types import MODALITIES

_log = logging.getLogger(__name__)


def known_ranges(settings: RangeConfig) -> Ranges:
    """One range per modality; None if it is not measured yet."""
    return tuple(None if value == "auto" else value for value in (settings.rgb, settings.nir, settings.tir))


def with_ranges(config: Config, settings: RangeConfig) -> Config:
    """A configuration with other ranges, such as measured ones, for its checkpoint."""
    return config.model_copy(update={"data": config.data.model_copy(update={"range": settings})})


def filled_ranges(settings: RangeConfig, measured: RangeConfig) -> RangeConfig:
    """Replace each `auto` of the settings by the range that a checkpoint measured on its training images."""
    pairs = ((name, getattr(settings, name), getattr(measured, name)) for name in MODALITIES)
    return RangeConfig(**{name: other if value == "auto" else value for name, value, other in pairs})


def resolve_ranges(settings: RangeConfig, records: Sequence[Record], *, workers: int = 0) -> RangeConfig:
    """Measure every `auto` on the training images of more than 8 bits; it stays `auto` if there are none.

    The log reports the ranges, and warns of a modality that has both 8-bit and deeper images.

    Raises:
        ImageError: an image cannot be read.
    """
    resolved: dict[str, ValueRange] = {}
    for index, name in enumerate(MODALITIES):
        value: ValueRange = getattr(settings, name)
        sources = sorted_sources(records, index)
        deep = _deep(sources, workers)
        if deep:
            low_high = measure(deep, workers=workers) if value == "auto" else value
            _log.info("%s", describe_range(name, low_high, num_deep=len(deep), measured=value == "auto"))
            value = low_high
        for line in mixed_depths(name, value, num_deep=len(deep), num_files=len(sources)):
            _log.warning("%s", line)
        resolved[name] = value
    return RangeConfig(**resolved)


def sorted_sources(records: Sequence[Record], modality: int) -> list[ImageSource]:
    """The different images of one modality (an index of `MODALITIES`), sorted by path and columns."""
    sources = {source for record in records if (source := record.images[modality]) is not None}
    return sorted(sources, key=lambda source: (source.path, source.columns or ()))


def measure(sources: Sequence[ImageSource], *, workers: int = 0) -> tuple[float, float]:
    """The `PERCENTILES` of the values of some images.

    At most `MAX_FILES` images and `MAX_SAMPLES` values of each are used, evenly spaced in the given order: the same
    images give the same numbers.

    Raises:
        ImageError: an image cannot be read.
    """
    chosen = [sources[position] for position in evenly_spaced(sources, MAX_FILES)]
    with quiet_decoders(), ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        samples = pool.map(lambda source: sample(columns_of(source, read_image(source.path).values)), chosen)
        return own_range(np.concatenate(list(samples)))


def describe_range(name: str, value: ValueRange, *, num_deep: int, measured: bool) -> str:
    """Which range is used for the deep images of a modality, in one line."""
    low, high = PERCENTILES
    if value == "file":
        how = f"of each file ({low:g} and {high:g} percentiles)"
    elif value == "auto":
        how = "(not known yet)"
    else:
        of = f" ({low:g} and {high:g} percentiles of the training images)" if measured else ""
        how = f"{value[0]:.7g} to {value[1]:.7g}{of}"
    return f"{name}: {num_deep} images of more than 8 bits, mapped to 256 levels from the range {how}"


def mixed_depths(name: str, value: ValueRange, *, num_deep: int, num_files: int) -> list[str]:
    """Warnings for a modality with 8-bit images, which no range changes, beside deeper ones or under a range."""
    shallow = num_files - num_deep
    if num_deep and shallow:
        return [
            f"{name}: {shallow} of {num_files} images have 8 bits and are used as they are, while {num_deep} have "
            "more and are scaled: the same scene looks different in the two; convert them to one depth"
        ]
    if shallow and value != "auto":
        return [
            f"data.range.{name} changes nothing: all {num_files} {name} images have 8 bits and are used as they are"
        ]
    return []


def depth_messages(settings: RangeConfig, records: Sequence[Record], *, workers: int = 0) -> tuple[str, ...]:
    """Warnings about 8-bit images for a model that was trained with a range for deeper ones.

    Raises:
        ImageError: an image cannot be read.
    """
    messages: list[str] = []
    for index, name in enumerate(MODALITIES):
        value: ValueRange = getattr(settings, name)
        if value == "auto":  # trained on 8-bit images: deeper ones are an error where they are read
            continue
        sources = list({source: None for record in records if (source := record.images[index]) is not None})
        shallow = len(sources) - len(_deep(sources, workers))
        if shallow:
            shown = value if isinstance(value, str) else [float(f"{number:.7g}") for number in value]
            messages.append(
                f"{shallow} of {len(sources)} {name} images have 8 bits and are used as they are, though "
                f"data.range.{name}={shown} is for deeper ones: their contrast differs from the training images"
            )
    return tuple(messages)


def _deep(sources: Sequence[ImageSource], workers: int) -> list[ImageSource]:
    """Those whose files have more than 8 bits, in their order."""
    with quiet_decoders(), ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        deep = pool.map(lambda source: is_deep_file(source.path), sources)
        return [source for source, is_deep in zip(sources, deep, strict=True) if is_deep]
