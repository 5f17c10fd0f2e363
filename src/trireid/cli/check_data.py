"""`trireid check-data`: counts and faults of a data set on disk."""

from __future__ import annotations

from pathlib import Path

from trireid.cli.console import note, progress, say
from trireid.cli.guard import USER_ERROR


def run(format: str, root: Path, *, exclude: str, skip_bad: bool, workers: int) -> int:
    """Print the report of a data set and return the exit code.

    Args:
        format, root, exclude, workers: as `trireid.data.check.check_dataset`.
        skip_bad: list and accept faults that leave usable splits, as training with data.skip_bad does.

    Returns:
        0 if there is no fault, or `skip_bad` leaves all of them out; else 2.
    """
    from trireid.data.check import check_dataset
    from trireid.data.listing import TREE_FAULTS

    with progress(f"checking {root}") as bar:
        found = check_dataset(format, root, exclude=exclude, workers=workers, progress=bar.reach)
    for line in found.lines():
        say(line)
    if found.ok:
        return 0
    if skip_bad and not any(fault.kind in TREE_FAULTS for fault in found.faults):
        note("data.skip_bad=true leaves these triplets out; the counts above do not include them")
        return 0
    return USER_ERROR
