"""`python -m fuzz`: run the cases, print what came of them, exit with 1 where one is wrong."""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fuzz.kinds import KINDS
from fuzz.runner import Finished, Kind, prepare, run_cases

SHOWN = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for.

    Returns:
        0 where every outcome is right, else 1.
    """
    given = _parser().parse_args(arguments)
    os.environ["CUDA_VISIBLE_DEVICES"] = (
        ""  # a child of a fork may not use a GPU, whose driver outgrows the limit of memory
    )
    kinds = [KINDS[name] for name in given.only or KINDS]
    scratch = Path(given.scratch or tempfile.mkdtemp(prefix="trireid-fuzz-")).resolve()
    started = time.monotonic()
    prepare(kinds, scratch)
    gc.collect()
    gc.freeze()  # else the first collection of each child would copy every page that holds an object
    done: list[Finished] = []
    wrong: Counter[str] = Counter()
    cases = within(planned(kinds, given.share, given.case), started + given.seconds)
    runs = run_cases(
        cases, seed=given.seed, scratch=scratch, jobs=given.jobs, wall_seconds=given.wall, keep=given.case is not None
    )
    for finished in runs:
        done.append(finished)
        if not finished.outcome.right:
            wrong[_alike(finished)] += 1
            if wrong[_alike(finished)] == 1:
                print(_failure(finished, given.seed), flush=True)
        if len(done) % 500 == 0:
            print(
                f"{len(done)} inputs, {wrong.total()} wrong, {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    if given.case is not None and done:
        print(_words(done[0]))
    print(table(kinds, done))
    planned_count = sum(1 for _ in planned(kinds, given.share, given.case))
    seconds = time.monotonic() - started
    print(f"{len(done)} of {planned_count} inputs, {wrong.total()} wrong, seed {given.seed}, {seconds:.0f} s")
    if wrong:
        print(f"{len(wrong)} sorts of wrong outcomes, of which the first of each is above:")
        for alike, number in wrong.most_common(SHOWN):
            print(f"{number:6d}  {alike}")
        print(f"what they wrote is kept in {scratch}")
    elif not given.scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    return int(bool(wrong))


def planned(kinds: Sequence[Kind], share: float, case: int | None) -> Iterator[tuple[Kind, int]]:
    """Kind and number of every case, the kinds mixed evenly, so that a run that stops early has seen all of them."""
    if case is not None:
        yield from ((kind, case) for kind in kinds)
        return
    order = [((index + 0.5) / kind.count, number, index) for number, kind in enumerate(kinds) for index in
             range(max(1, round(kind.count * share)))]  # fmt: skip
    yield from ((kinds[number], index) for _, number, index in sorted(order))


def within(cases: Iterator[tuple[Kind, int]], deadline: float) -> Iterator[tuple[Kind, int]]:
    """The cases, until the time is over."""
    for case in cases:
        if time.monotonic() > deadline:
            print("the time is over; the rest is left out", file=sys.stderr)
            return
        yield case


def table(kinds: Sequence[Kind], done: Sequence[Finished]) -> str:
    """Outcomes by kind."""
    counts = Counter((finished.kind, finished.outcome.name) for finished in done)
    found = {name for _, name in counts}
    columns = ["works", "refused", *sorted(found - {"works", "refused"})]
    rows = [["kind", "inputs", *columns]]
    for name in (*(kind.name for kind in kinds), "all"):
        numbers = [sum(n for (k, o), n in counts.items() if o == column and name in (k, "all")) for column in columns]
        rows.append([name, str(sum(numbers)), *map(str, numbers)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(columns) + 2)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _failure(finished: Finished, seed: int) -> str:
    outcome = finished.outcome
    again = f"--only {finished.kind} --seed {seed} --case {finished.index}"
    detail = outcome.detail.encode("ascii", "backslashreplace").decode()
    return f'{outcome.name} ({finished.strategy}): {detail}\n    again: make fuzz FUZZ="{again}"'


def _alike(finished: Finished) -> str:
    """What faults of one sort have in common: the outcome and the line, without numbers, paths and names."""
    detail = re.sub(r"/\S+|'[^']*'|\"[^\"]*\"|\d+", "...", finished.outcome.detail)
    return f"{finished.kind}, {finished.outcome.name}: {detail[:110]}".encode("ascii", "backslashreplace").decode()


def _words(finished: Finished) -> str:
    """All that a case said, for one that is run again."""
    lines = [f"{finished.strategy}: {finished.outcome.name} {finished.outcome.detail}"]
    for name in ("input", "out", "err", "foreign", "seen"):
        for path in finished.folder.glob(f"{name}.*"):
            lines.append(f"--- {path}\n{path.read_text(encoding='utf-8', errors='replace')[-6000:]}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(KINDS), help="a kind; repeat for more (all)")
    parser.add_argument("--seed", type=int, default=1, help="other seeds make other inputs (1)")
    parser.add_argument("--case", type=int, help="this case alone, with all that it says")
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs of every kind, 0.05 is a twentieth (1)")
    parser.add_argument("--seconds", type=float, default=540, help="start no case after so long (540)")
    parser.add_argument("--wall", type=float, default=60, help="seconds that a case may take by the clock (60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases at a time (all cores)")
    parser.add_argument("--scratch", help="a folder to work in, which is kept (a temporary one)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
