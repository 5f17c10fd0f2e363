"""`trireid synth`: write a synthetic data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trireid.cli.console import progress, say
from trireid.errors import ConfigError

LAYOUTS = ("rgbnt201", "rgbnt100", "msvr310", "wmveid863")
DIFFICULTIES = ("easy", "hard")


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
    """Write the set and say how to check and train it; arguments as the options of the command."""
    if layout not in LAYOUTS:
        raise ConfigError(f"--layout: given {layout}, allowed is one of {', '.join(LAYOUTS)}")
    if difficulty not in DIFFICULTIES:
        raise ConfigError(f"--difficulty: given {difficulty}, allowed is {' or '.join(DIFFICULTIES)}")
    counts = {"--ids": num_ids, "--cameras": num_cameras, "--per-camera": per_camera}
    unwanted = [name for name, value in counts.items() if value is not None]
    if names and unwanted:
        raise ConfigError(f"--names already says how many there are; leave out {', '.join(unwanted)}")
    image_size = None if size is None else parse_size(size)
    from trireid.data.synthetic import write_synthetic

    with progress(f"writing {out}") as report:
        write_synthetic(
            out,
            layout=layout,
            names=name_lists(names, layout) if names else None,
            num_ids=num_ids,
            num_cameras=num_cameras,
            per_camera=per_camera,
            difficulty=difficulty,
            seed=seed,
            workers=workers,
            image_size=image_size,
            progress=report,
        )
    say(f"written: {out}")
    say(f"check:   trireid check-data --format {layout} --root {out}")


def parse_size(text: str) -> tuple[int, int]:
    """`64x32` -> (64, 32), height first.

    Raises:
        ConfigError: if it is written another way.
    """
    found = re.fullmatch(r"([1-9]\d*)[xX,]([1-9]\d*)", text)
    if not found:
        raise ConfigError(f"--size: given {text}, should be height x width in pixels, e.g. 64x32")
    return int(found[1]), int(found[2])


def name_lists(paths: Sequence[Path], layout: str) -> list[Path]:
    """The list files meant by files or by a folder that holds `<SET>_train.txt` and `<SET>_test.txt`.

    Raises:
        ConfigError: if a file is missing or the folder has no lists of the layout.
    """
    lists: list[Path] = []
    for path in paths:
        found = sorted(p for p in path.glob("*.txt") if p.name.lower().startswith(layout)) if path.is_dir() else [path]
        if not found:
            raise ConfigError(f"--names: folder {path} has no list {layout.upper()}_train.txt or {layout.upper()}_test.txt")
        missing = [str(p) for p in found if not p.is_file()]
        if missing:
            raise ConfigError(f"--names: {missing[0]} does not exist; give a text file with one file name a line")
        lists += found
    return lists
