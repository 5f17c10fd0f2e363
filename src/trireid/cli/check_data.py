"""`trireid check-data`: counts and faults of a data set on disk."""

from __future__ import annotations

from pathlib import Path

from trireid.cli.console import note, progress, say
from trireid.cli.guard import USER_ERROR


def run(format: str, root: Path, *, exclude: str, skip_bad: bool, workers: int) -> int:
    """Print the report of a data set and return the exit code.

    Args:
        format, root, exclude, workers: as `trireid.data.check.check_dataset`.
        skip_bad: faults that leave usable splits are listed and accepted, as training with data.skip_bad does.

    Returns:
        0 where nothing is wrong (or `skip_bad` leaves the faults out), else 2.
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
        note("these triplets are left out with data.skip_bad=true; the counts above are without them")
        return 0
    return USER_ERROR
