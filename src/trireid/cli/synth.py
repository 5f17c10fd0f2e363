"""`trireid synth`: write a synthetic data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trireid.cli.console import progress, say
from trireid.errors import ConfigError


def run(
    out: Path,
    *,
    layout: str,
    names: Sequence[Path],
    num_ids: int | None,
    num_cameras: int | None,
    per_camera: int | None,
    difficulty: str,
    seed: int,
    size: str | None,
    workers: int,
) -> None:
    """Write the data set and print how to check it; arguments as for `trireid.data.synthetic.write_synthetic`."""
    image_size = None if size is None else parse_size(size)
    from trireid.data.synthetic import write_synthetic

    with progress(f"writing {out}") as bar:
        summary = write_synthetic(
            out,
            layout=layout,
            names=list(names) or None,
            num_ids=num_ids,
            num_cameras=num_cameras,
            per_camera=per_camera,
            difficulty=difficulty,
            seed=seed,
            workers=workers,
            image_size=image_size,
            progress=bar.reach,
        )
    counts = [f"{name} {split.triplets} triplets of {split.identities}" for name, split in summary.splits.items()]
    say(f"written: {summary.root} ({', '.join(counts)} identities)")
    say(f"check:   trireid check-data --format {layout} --root {out}")


def parse_size(text: str, *, option: str = "--size") -> tuple[int, int]:
    """A size as (height, width).

    Raises:
        ConfigError: it is not height x width in whole pixels.

    Example:
        >>> parse_size("64x32")
        (64, 32)
    """
    found = re.fullmatch(r"([1-9]\d*)[xX,]([1-9]\d*)", text)
    if not found:
        raise ConfigError(f"{option}: given {text}, give height x width in pixels, e.g. 64x32")
    return int(found[1]), int(found[2])
