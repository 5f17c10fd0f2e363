"""`trireid import`: convert a file of upstream (DeMo), CLIP or timm."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from trireid.cli.console import note, progress, say, show_table
from trireid.cli.synth import parse_size


def run(
    source: Path, target: Path, *, image_size: str | None, checkpoint_image_size: str | None, **options: Any
) -> None:
    """Import a file and print the report; options as for `trireid.upstream.importing.import_file`.

    Raises:
        TrireidError: the file is damaged or does not fit; if a report could be made, it was printed.
    """
    size = parse_size(image_size, option="--image-size") if image_size else None
    its_own = parse_size(checkpoint_image_size, option="--checkpoint-image-size") if checkpoint_image_size else None
    with progress(f"reading {source}", counted=False):
        from trireid.upstream.importing import import_file
        from trireid.upstream.state_dict import UpstreamMismatchError
    try:
        with progress(f"reading {source}", counted=False):
            done = import_file(source, target, image_size=size, checkpoint_image_size=its_own, **options)
    except UpstreamMismatchError as error:
        show_report(source, error.report)
        raise
    show_report(source, done.report)
    say(f"report:  {done.report_path} (every key)")
    if done.is_model:
        say(f"written: {done.path}, a checkpoint with backbone {done.backbone}")
        say(f"test:    trireid test {done.path} data.root=...")
    else:
        say(f"written: {done.path}, start weights")
        say(f"use:     model.backbone.name={done.backbone} model.backbone.pretrained={done.path}")


def show_report(source: Path, report: Any) -> None:
    """Print the report as a table, similar keys in one row, and its notes."""
    rows: Counter[tuple[str, str, str]] = Counter()
    for key, ours in report.used.items():
        rows["used", _pattern(key), _pattern(ours)] += 1
    for key, why in report.ignored.items():
        rows["ignored", _pattern(key), why] += 1
    for ours, keys in report.missing.items():
        for key in keys:
            rows["missing", key, f"needed for {ours}"] += 1
    for key in report.unknown:
        rows["unknown", key, "no rule knows it"] += 1
    for ours, what in report.misfits.items():
        rows["wrong shape", what, ours] += 1
    for key, what in report.unusable.items():
        rows["no weights", key, what] += 1
    table = [[fate, f"{number}", key, where] for (fate, key, where), number in rows.items()]
    show_table(f"{source}: {report.describe()}", ["fate", "keys", "in the file", "in trireid, or reason"], table)
    for line in report.notes:
        note(line)


def _pattern(name: str) -> str:
    """The name with `*` in place of its numbers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
