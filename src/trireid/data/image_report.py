"""What `trireid check-data` reports of the pixels: formats, depths, ranges, orientations and suspicious images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trireid.config.schema import ValueRange
from trireid.data.range_settings import describe_range, measure, mixed_depths, sorted_sources
from trireid.data.records import ImageFacts, ImageSource, Record
from trireid.types import MODALITIES

SMALLEST = 8
"""An image with a side of fewer pixels is reported as tiny."""

Facts = Mapping[Path, ImageFacts]


def describe_images(
    train: Sequence[Record], others: Sequence[Record], facts: Facts, *, workers: int = 4
) -> tuple[list[str], list[str]]:
    """Lines that describe the images of each modality, and warnings.

    Args:
        train: training records; the value range is measured on them.
        others: all other records.
        facts: facts of every file of these records.
        workers: threads that decode.
    """
    lines: list[str] = []
    warnings: list[str] = []
    for index, name in enumerate(MODALITIES):
        sources = list(dict.fromkeys(source for record in (*train, *others) if (source := record.images[index])))
        if not sources:
            continue
        known = [(source, facts[source.path]) for source in sources]
        lines.append(f"{name}: {len(sources)} images: {_counted(known)}")
        deep = [source for source, fact in known if fact.deep]
        if deep:
            trained = [source for source in sorted_sources(train, index) if facts[source.path].deep]
            value: ValueRange = measure(trained, workers=workers) if trained else "auto"
            lines.append(f"  {describe_range(name, value, num_deep=len(deep), measured=True)}")
        warnings += mixed_depths(name, "auto", num_deep=len(deep), num_files=len(sources))
        warnings += _odd(name, known, "have the same value everywhere", lambda fact: fact.flat)
        warnings += _odd(name, known, f"are smaller than {SMALLEST} x {SMALLEST} pixels", _tiny)
    return lines, warnings


def _counted(known: Sequence[tuple[ImageSource, ImageFacts]]) -> str:
    kinds = Counter(f"{fact.format} {fact.dtype}" for _, fact in known)
    tags = Counter(fact.orientation for _, fact in known if fact.orientation != 1)
    parts = [", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))]
    if tags:
        each = ", ".join(f"tag {tag}: {number}" for tag, number in sorted(tags.items()))
        parts.append(f"{tags.total()} rotated upright by their orientation ({each})")
    return "; ".join(parts)


def _tiny(fact: ImageFacts) -> bool:
    return min(fact.size) < SMALLEST


def _odd(
    name: str, known: Sequence[tuple[ImageSource, ImageFacts]], what: str, is_odd: Callable[[ImageFacts], bool]
) -> list[str]:
    odd = [source.path for source, fact in known if is_odd(fact)]
    return [f"{name}: {len(odd)} of {len(known)} images {what}, the first is {odd[0]}"] if odd else []
