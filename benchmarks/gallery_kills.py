"""A gallery in a folder whose process is killed at random moments: is anything lost, torn, doubled or left locked?

    python benchmarks/gallery_kills.py [--kills 100] [--creations 20] [--seed 0] [--folder FOLDER]    # several minutes

A child process opens the gallery and adds, replaces, labels, unlabels and removes items in a loop. It writes a line to
a log before each operation and one after it, when the gallery has reported it as done, and gets SIGKILL at a random
moment, which may lie in the opening, in an operation, or in the compaction that the engine does by itself. Then the
gallery is opened again and compared with the log, item by item: by its keys, identities and metadata, and by a query
with the feature that each item must have. All kills meet the same folder, so that damage would add up. Creations are
killed as well: the folder must then open as an empty gallery, or be created anew.

Counted: operations that were reported as done; items that such an operation wrote and that are not there, or that it
removed and that are (lost); items whose parts are of different operations (torn); keys that are there twice (doubled);
galleries that did not open (locked); and operations in flight, which may be done, not done, or done for some of their
items (divided). The exit code is 1 if anything is lost, torn, doubled or locked.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trireid import Filter, Gallery, Item
from trireid.embedding.embeddings import Embeddings, ModelIdentity
from trireid.errors import TrireidError
from trireid.gallery.layout import present_of

WIDTH = 24
KEYS = 400
MODEL = ModelIdentity(fingerprint="0" * 64, feature="global", blocks=((0,), (1,), (2,)), width=WIDTH)
State = dict[str, tuple[int, str | None]]
"""By key: the number of the operation that added the item, and its identity."""


def embeddings(items: State) -> Embeddings:
    """The features that items must have: of each key and operation another one."""
    vectors, present, made = [], [], []
    for key, (number, identity) in items.items():
        generator = np.random.default_rng([number, int(key.removeprefix("item"))])
        there = np.array(present_of(int(generator.integers(1, 8))))
        vectors.append(generator.normal(size=WIDTH) * np.repeat(there, WIDTH // 3))
        present.append(there)
        made.append(Item(images={}, key=key, identity=identity, metadata={"operation": number}))
    return Embeddings(np.array(vectors, dtype=np.float32), np.array(present), tuple(made), MODEL)


def operations(seed: int, number: int, state: State) -> Iterator[tuple[dict[str, Any], State]]:
    """Random operations without end, and what each leaves."""
    chance = random.Random(f"{seed} {number}")
    while True:
        kind = chance.choice(("add", "add", "label", "unlabel", "remove")) if state else "add"
        if kind == "add":
            keys = [f"item{each}" for each in chance.sample(range(KEYS), chance.randint(1, 60))]
        else:
            keys = chance.sample(sorted(state), min(len(state), chance.randint(1, 12)))
        operation = {"number": number, "kind": kind, "keys": keys}
        state = after(state, operation)
        yield operation, state
        number += 1


def after(state: State, operation: dict[str, Any], keys: set[str] | None = None) -> State:
    """What an operation leaves, of all its keys or of some."""
    state, number, kind = dict(state), operation["number"], operation["kind"]
    for key in operation["keys"]:
        if keys is not None and key not in keys:
            continue
        if kind == "remove":
            del state[key]
        else:
            first = number if kind == "add" else state[key][0]
            identity = {"add": f"identity{number % 7}", "label": f"label{number}", "unlabel": None}[kind]
            state[key] = first, identity
    return state


def work(folder: Path, log: Path, seed: int, number: int, state: State) -> None:
    """The child: operations until it is killed."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def report(**line: Any) -> None:
        os.write(descriptor, json.dumps(line).encode() + b"\n")

    report(opening=True)
    with Gallery.open(folder) as gallery:
        for operation, left in operations(seed, number, state):
            report(begin=operation)
            keys = operation["keys"]
            if operation["kind"] == "add":
                gallery.add(embeddings({key: left[key] for key in keys}))
            elif operation["kind"] == "remove":
                gallery.remove(Filter(keys=keys))
            elif operation["kind"] == "label":
                gallery.label(keys, f"label{operation['number']}")
            else:
                gallery.unlabel(keys)
            report(done=operation["number"])


@dataclass
class Outcome:
    """What was counted."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, kind: str, about: str) -> None:
        """Count what must not be."""
        self.counts[kind] += 1
        self.faults.append(f"{kind}: {about}")


def killed_child(arguments: list[str], log: Path, chance: random.Random, longest: float) -> list[dict[str, Any]]:
    """Start a child, kill it some time after its first line, and give its lines."""
    log.unlink(missing_ok=True)
    child = subprocess.Popen([sys.executable, __file__, *arguments], stderr=subprocess.PIPE)
    while child.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, longest))
    child.send_signal(signal.SIGKILL)
    _, said = child.communicate()
    if child.returncode != -signal.SIGKILL:
        raise SystemExit(f"the child ended by itself:\n{said.decode()}")
    return [json.loads(line) for line in log.read_text().splitlines() if line]


def found_state(gallery: Gallery, outcome: Outcome) -> State:
    """What the gallery holds; keys that are there twice are counted."""
    state: State = {}
    last, pages = None, 0
    while page := gallery.list(after=last, limit=200):
        for item in page:
            if item.key in state:
                outcome.fault("doubled", f"{item.key} is listed twice")
            state[str(item.key)] = int(item.metadata["operation"]), item.identity
        last, pages = page[-1].key, pages + 1
    if gallery.count() != len(state):
        outcome.fault("doubled", f"{gallery.count()} items are counted, {len(state)} are listed")
    return state


def check(folder: Path, lines: list[dict[str, Any]], state: State, outcome: Outcome) -> State:
    """Compare the gallery with the log of one child; the state that it is in."""
    done = {line["done"] for line in lines if "done" in line}
    begun = [line["begin"] for line in lines if "begin" in line]
    for operation in begun:
        if operation["number"] in done:
            state = after(state, operation)
    flying = [operation for operation in begun if operation["number"] not in done]
    outcome.counts["operations"] += len(done)
    try:
        gallery = Gallery.open(folder)
    except TrireidError as error:
        outcome.fault("locked", str(error))
        raise SystemExit("\n".join(outcome.faults)) from None
    with gallery:
        found = found_state(gallery, outcome)
        for operation in flying:
            there = {key for key in operation["keys"] if found.get(key) == after(state, operation).get(key)}
            change = [key for key in operation["keys"] if state.get(key) != after(state, operation).get(key)]
            share = len(there & set(change)) / max(1, len(change))
            outcome.counts["in flight, " + ("done" if share == 1 else "not done" if share == 0 else "divided")] += 1
            state = after(state, operation, there)
        for key in sorted(state.keys() | found.keys()):
            if state.get(key) != found.get(key):
                outcome.fault("lost", f"{key} is {found.get(key)}, must be {state.get(key)}")
        if found:
            results = gallery.query(embeddings(found), top=1)
            for key, result in zip(found, results, strict=True):
                best = result.matches[0]
                if best.key != key or (best.similarity or 0.0) < 1.0 - 1e-5:
                    outcome.fault("torn", f"{key} has not the feature of operation {found[key][0]}")
    return found


def kill_operations(folder: Path, outcome: Outcome, kills: int, seed: int, longest: float) -> None:
    """Kills in the middle of operations, all on one folder."""
    chance, state, number = random.Random(seed), State(), 0
    Gallery.create(folder, MODEL).close()
    log, before = folder.with_suffix(".log"), folder.with_suffix(".state")
    for run in range(kills):
        before.write_text(json.dumps(state))
        arguments = ["--work", str(folder), str(log), str(seed), str(number), str(before)]
        lines = killed_child(arguments, log, chance, longest)
        number += sum("begin" in line for line in lines)
        state = check(folder, lines, state, outcome)
        outcome.counts["kills"] += 1
        if sys.stderr.isatty():
            print(f"\r{run + 1}/{kills} kills, {outcome.counts['operations']} operations", end="", file=sys.stderr)


def kill_creations(folder: Path, outcome: Outcome, creations: int, seed: int) -> None:
    """Kills in the middle of `Gallery.create`; each must leave a gallery, or a place for one."""
    chance, log = random.Random(seed + 1), folder.with_suffix(".log")
    for _ in range(creations):
        killed_child(["--create", str(folder), str(log)], log, chance, 1.2)
        try:
            Gallery.open(folder).close()
            outcome.counts["creations that were done"] += 1
        except TrireidError:
            try:
                Gallery.create(folder, MODEL).close()
                outcome.counts["creations that were done anew"] += 1
            except TrireidError as error:
                outcome.fault("locked", str(error))
        shutil.rmtree(folder)


def main() -> int:
    """Kill, count, print; 1 where anything is amiss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--creations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=2.5, help="seconds that a child lives at most")
    parser.add_argument("--folder", type=Path, help="where the gallery is made; a temporary one by default")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--create", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        folder, log, seed, number, before = given.work
        state = {key: (first, identity) for key, (first, identity) in json.loads(Path(before).read_text()).items()}
        work(Path(folder), Path(log), int(seed), int(number), state)
    if given.create:
        Path(given.create[1]).write_text("{}\n")
        Gallery.create(given.create[0], MODEL)
        time.sleep(60)
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        kill_operations(folder / "gallery", outcome, given.kills, given.seed, given.longest)
        kill_creations(folder / "created", outcome, given.creations, given.seed)
    outcome.counts.update(dict.fromkeys(("lost", "torn", "doubled", "locked"), 0))
    for name, count in outcome.counts.items():
        print(f"{name:36} {count}")
    print(*outcome.faults[:20], sep="\n")
    return bool(outcome.faults)


if __name__ == "__main__":
    sys.exit(main())
