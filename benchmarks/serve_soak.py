"""Random writes of many clients for some minutes: at the end the gallery must equal the log of what was answered.

python benchmarks/serve_soak.py
    ten minutes on a CPU, 16 clients, a tiny model of random weights
python benchmarks/serve_soak.py --minutes 2 --kills 5
    two minutes; the server is killed (SIGKILL) five times and started again

Each client adds, replaces, labels and removes items of its own keys, searches and lists. It repeats a request until it
is answered, and notes what the answer says. The exit code is 1 where the gallery differs from these notes.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import serving

from trireid.cli.guard import guarded
from trireid.embedding.embedder import Embedder
from trireid.gallery.gallery import Gallery
from trireid.types import MODALITIES

KEYS = 30
"""Of each client at most, so that the gallery stays of one size."""


class Client(threading.Thread):
    """One client, its random requests and its notes.

    Args:
        number: of the client; the seed of its requests.
        place: holds the present server.
        end: time at which it stops.
    """

    def __init__(self, number: int, place: dict[str, serving.Server], end: float) -> None:
        super().__init__(daemon=True)
        self.number, self.place, self.end = number, place, end
        self.random = random.Random(number)
        self.notes: dict[str, dict[str, Any]] = {}
        self.status: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.connection: Any = None
        self.fault: str | None = None

    def run(self) -> None:
        """Send requests until the time is over."""
        while time.monotonic() < self.end and self.fault is None:
            steps = [self.add, self.add, self.label, self.remove, self.search, self.read]
            self.random.choice(steps)()

    def send(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, Any]:
        """One request, repeated until it is answered by other than 429."""
        while True:
            start = time.perf_counter()
            try:
                if self.connection is None:
                    self.connection = self.place["server"].connect()
                self.connection.request(method, path, body, {"Content-Type": kind})
                answer = self.connection.getresponse()
                status, content = answer.status, json.loads(answer.read())
            except (OSError, HTTPException, ValueError):
                self.connection = None
                self.status["not answered"] += 1
                time.sleep(0.1)
                continue
            self.status[str(status)] += 1
            self.seconds.append(time.perf_counter() - start)
            if status != 429:
                return status, content
            time.sleep(float(answer.headers["Retry-After"]))

    def expect(self, found: tuple[int, Any], *allowed: int) -> Any:
        """The content of an answer; another status is a fault."""
        if found[0] not in allowed:
            self.fault = f"client {self.number}: {found}"
        return found[1]

    def add(self) -> None:
        """Add an item, or replace one."""
        names = list(self.notes)
        new = len(names) < KEYS and self.random.random() < 0.7
        key = f"{self.number}/{self.random.randrange(10**9)}" if new or not names else self.random.choice(names)
        modalities = self.random.sample(MODALITIES, self.random.randint(1, len(MODALITIES)))
        facts = {"identity": str(self.random.randrange(9)), "camera": f"cam{self.random.randrange(3)}"}
        facts["metadata"] = {"turn": self.random.randrange(10**9)}
        images = {name: serving.encoded(self.random.randrange(50), (64, 32)) for name in modalities}
        fields = {"items": [{"key": key, **facts}]}
        self.expect(self.send("POST", "/v1/items", serving.form(fields, images), serving.FORM), 200)
        self.notes[key] = {**facts, "images": sorted(modalities)}

    def label(self) -> None:
        """Label or unlabel an item."""
        if self.notes:
            key = self.random.choice(list(self.notes))
            identity = None if self.random.random() < 0.3 else str(self.random.randrange(9))
            body = json.dumps({"keys": [key], "identity": identity}).encode()
            self.expect(self.send("PATCH", "/v1/items", body), 200)
            self.notes[key]["identity"] = identity

    def remove(self) -> None:
        """Remove an item; where the answer was lost, it may be gone already."""
        if self.notes:
            key = self.random.choice(list(self.notes))
            self.expect(self.send("DELETE", f"/v1/items/{key.replace('/', '%2F')}"), 200, 404)
            del self.notes[key]

    def search(self) -> None:
        """Search by images."""
        fields = {"top": 3, "by": self.random.choice(["item", "identity"])}
        body = serving.form(fields, {"rgb": serving.encoded(self.random.randrange(50), (64, 32))})
        self.expect(self.send("POST", "/v1/search", body, serving.FORM), 200)

    def read(self) -> None:
        """Read an item: what was answered before must be there."""
        if self.notes:
            key = self.random.choice(list(self.notes))
            found = self.expect(self.send("GET", f"/v1/items/{key.replace('/', '%2F')}"), 200)
            if self.fault is None and plain(found) != self.notes[key]:
                self.fault = f"client {self.number}: {key} is {plain(found)}, noted {self.notes[key]}"


def plain(item: dict[str, Any]) -> dict[str, Any]:
    """What is noted of an item, of its answer."""
    metadata = {"turn": item["metadata"]["turn"]}
    images = sorted(item["images"])
    return {"identity": item["identity"], "camera": item["camera"], "metadata": metadata, "images": images}


def soak(minutes: float, clients: int, kills: int, folder: Path) -> dict[str, Any]:
    """Run it; the numbers, and the differences that were found."""
    run = serving.write_model(folder / "model.safetensors", "tiny")
    gallery, log = str(folder / "gallery"), folder / "log"
    Gallery.create(gallery, Embedder(run, device="cpu").model).close()
    place = {"server": serving.Server(run, gallery, "--device", "cpu", log=log)}
    start = time.monotonic()
    end = start + 60 * minutes
    running = [Client(number, place, end) for number in range(clients)]
    for client in running:
        client.start()
    memory: list[tuple[float, float]] = []
    kill_at = [start + 60 * minutes * (number + 1) / (kills + 1) for number in range(kills)]
    while time.monotonic() < end:
        time.sleep(min(1.0, minutes * 6))
        memory.append((time.monotonic() - start, place["server"].memory() / 2**20))
        if kill_at and time.monotonic() > kill_at[0]:
            kill_at.pop(0)
            place["server"].end(signal.SIGKILL)
            place["server"] = serving.Server(run, gallery, "--device", "cpu", log=log)
    for client in running:
        client.join(timeout=120)
    noted = {key: note for client in running for key, note in client.notes.items()}
    faults = [client.fault for client in running if client.fault is not None]
    faults += compare(noted, listed(place["server"]), "the service lists")
    ended = place["server"].end()
    with Gallery.open(gallery) as opened:
        keys = {str(item.key) for item in opened.list(limit=1000)}
    faults += [f"the folder differs from the notes in {key}" for key in sorted(keys ^ set(noted))[:5]]
    pictures = sum(1 for path in (folder / "gallery.media").rglob("*.webp"))
    if pictures != sum(len(note["images"]) for note in noted.values()):
        faults.append(f"{pictures} thumbnails of {sum(len(note['images']) for note in noted.values())} images")
    return summary(running, memory, noted, ended) | {"minutes": minutes, "kills": kills, "faults": faults}


def listed(server: serving.Server) -> dict[str, dict[str, Any]]:
    """All items that the service lists, page by page."""
    found: dict[str, dict[str, Any]] = {}
    cursor = ""
    while True:
        page = server.get(f"/v1/items?limit=100{cursor}")
        found |= {item["key"]: plain(item) for item in page["items"]}
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"


def compare(noted: dict[str, Any], found: dict[str, Any], what: str) -> list[str]:
    """The first differences."""
    different = [key for key in sorted(set(noted) | set(found)) if noted.get(key) != found.get(key)]
    return [f"{what} {key} as {found.get(key)}, noted {noted.get(key)}" for key in different[:5]]


def summary(
    clients: list[Client], memory: list[tuple[float, float]], noted: dict[str, Any], ended: float
) -> dict[str, Any]:
    """Counts, times and memory; the memory of the first minute does not count."""
    times = np.concatenate([client.seconds for client in clients])
    after = [(second, size) for second, size in memory if second > min(60.0, memory[-1][0] / 2)]
    slope = np.polyfit(*np.array(after).T, 1)[0] if len(after) > 2 else float("nan")
    return {
        "requests": len(times),
        "by_status": dict(sum((client.status for client in clients), Counter())),
        "p50_ms": 1e3 * float(np.percentile(times, 50)),
        "p99_ms": 1e3 * float(np.percentile(times, 99)),
        "items": len(noted),
        "seconds_to_end": ended,
        "memory_mb": {
            "start": memory[0][1],
            "after_first_minute": after[0][1],
            "end": memory[-1][1],
            "most": max(size for _, size in memory),
            "growth_per_minute": 60 * float(slope),
        },
    }


def main() -> None:
    """Run, print the numbers, and exit with 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--kills", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(given.minutes, given.clients, given.kills, Path(folder))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    raise SystemExit(bool(result["faults"]))


if __name__ == "__main__":
    with guarded():
        main()
