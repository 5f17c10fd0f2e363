"""Latency and throughput of the service by number of clients, as ratios to the bare model of the same run.

python benchmarks/serve_load.py --out serve_load.json
    about three minutes on a GPU: ViT-B/16 of random weights at 256 x 128, with its own server and gallery
python benchmarks/serve_load.py --backbone tiny --device cpu --seconds 3
    about a minute on a CPU
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import serving

from trireid.benchmark import describe_machine
from trireid.cli.guard import guarded
from trireid.embedding.embedder import Embedder
from trireid.embedding.items import Item
from trireid.types import MODALITIES

BATCH = 32
ROUTES = {
    "embed": ("/v1/embed", {"encoding": "base64"}),
    "search": ("/v1/search", {"top": 10, "by": "identity"}),
}


def main() -> None:
    """Measure, print a table, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=list(serving.SIZES), default="clip_vit_b16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clients", default="1,2,8,32")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--items", type=int, default=2000, help="of the gallery")
    parser.add_argument("--max-wait", type=float, default=None, help="milliseconds, as of trireid serve")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    clients = [int(number) for number in given.clients.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        result = measure(given, clients, Path(folder))
    sys.stdout.write(table(result))
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(given: argparse.Namespace, clients: list[int], folder: Path) -> dict[str, Any]:
    """All numbers of one machine."""
    run = serving.write_model(folder / "model.safetensors", given.backbone)
    size = serving.SIZES[given.backbone]
    images = {name: serving.encoded(number, size) for number, name in enumerate(MODALITIES)}
    bare, machine = bare_model(run, given.device, images, given.seconds)
    gallery = str(folder / "gallery")
    serving.fill(gallery, Embedder(run, device="cpu").model, given.items)
    options = ["--device", given.device, *([] if given.max_wait is None else ["--max-wait", str(given.max_wait)])]
    server = serving.Server(run, gallery, *options, log=folder / "log")
    rows = []
    try:
        for route, (path, fields) in ROUTES.items():
            body = serving.form(fields, images)
            drive(server.port, path, body, clients=4, seconds=2.0)  # warm up
            for number in clients:
                before = server.get("/metrics")
                found = drive(server.port, path, body, clients=number, seconds=given.seconds)
                batch = mean_batch(route, before, server.get("/metrics"))
                rows.append({"route": route, "clients": number, **found, "mean_batch": batch})
        metrics = server.get("/metrics")
    finally:
        server.end()
    batches = {kind: mean_batch(kind, "", metrics) for kind in ROUTES}
    return {
        "machine": machine,
        "cores": len(os.sched_getaffinity(0)),
        "backbone": given.backbone,
        "gallery_items": given.items,
        "bare": bare,
        "mean_batch": batches,
        "rows": rows,
    }


def bare_model(run: Path, device: str, images: dict[str, bytes], seconds: float) -> tuple[dict[str, float], str]:
    """What the model alone does with decoded images: one item at a time, and in batches."""
    from trireid.data.formats import decode

    embedder = Embedder(run, device=device)
    item = Item(images={name: decode(content).values for name, content in images.items()})
    one = repeated(lambda: embedder.embed([item]), seconds / 2)
    many = repeated(lambda: embedder.embed([item] * BATCH), seconds / 2)
    facts = describe_machine(embedder.device)
    machine = f"{facts['name']}, torch {facts['torch']}, Python {facts['python']}, {embedder.precision}"
    return {"one_ms": 1e3 * one, "one_per_second": 1 / one, "batch_per_second": BATCH / many}, machine


def repeated(step: Callable[[], object], seconds: float) -> float:
    """Median time of a step, after three that do not count."""
    for _ in range(3):
        step()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def drive(port: int, path: str, body: bytes, *, clients: int, seconds: float) -> dict[str, float]:
    """Requests of some clients at once, each as soon as the one before was answered."""
    processes = max(1, min(clients, len(os.sched_getaffinity(0)) // 2))
    shares = [clients // processes + (number < clients % processes) for number in range(processes)]
    script = Path(__file__).with_name("serve_client.py")
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        common = [sys.executable, str(script), str(port), path, file.name, serving.FORM]
        workers = [
            subprocess.Popen([*common, str(share), str(seconds)], stdin=PIPE, stdout=PIPE, text=True)
            for share in shares
        ]
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        found = [json.loads(worker.communicate(timeout=seconds + 120)[0]) for worker in workers]
    if failed := [status for each in found for status in each["failed"]]:
        raise SystemExit(f"{len(failed)} requests to {path} failed, the first with {failed[0]}")
    times = np.concatenate([each["times"] for each in found])
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    return {"per_second": len(times) / seconds, "p50_ms": 1e3 * p50, "p95_ms": 1e3 * p95, "p99_ms": 1e3 * p99}


def mean_batch(kind: str, before: str, after: str) -> float:
    """Requests that the service worked on together, on average, between two readings of its metrics."""
    entries, batches = (
        value_of(after, f"trireid_{kind}_batch_entries_{part}")
        - value_of(before, f"trireid_{kind}_batch_entries_{part}")
        for part in ("sum", "count")
    )
    return entries / max(1.0, batches)


def value_of(metrics: str, name: str) -> float:
    """One value of Prometheus' text."""
    return next((float(line.split()[1]) for line in metrics.splitlines() if line.startswith(f"{name} ")), 0.0)


def table(result: dict[str, Any]) -> str:
    """A Markdown table, each number beside its ratio to the bare model."""
    bare = result["bare"]
    lines = [
        f"{result['machine']}, {result['cores']} cores; {result['backbone']}; {result['gallery_items']} items",
        f"bare model: one item {bare['one_ms']:.1f} ms; batches of {BATCH}: {bare['batch_per_second']:.1f} items/s",
        f"mean batch: embed {result['mean_batch']['embed']:.1f}, search {result['mean_batch']['search']:.1f}",
        "",
        "| request | clients | per second | of bare batches | of one client | batch | p50 ms | of bare | p95 | p99 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        first = next(each for each in result["rows"] if each["route"] == row["route"])
        lines.append(
            f"| {row['route']} | {row['clients']} | {row['per_second']:.1f} "
            f"| {row['per_second'] / bare['batch_per_second']:.2f} | {row['per_second'] / first['per_second']:.2f} "
            f"| {row['mean_batch']:.1f} "
            f"| {row['p50_ms']:.1f} | {row['p50_ms'] / bare['one_ms']:.2f} "
            f"| {row['p95_ms']:.1f} | {row['p99_ms']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with guarded():
        main()
