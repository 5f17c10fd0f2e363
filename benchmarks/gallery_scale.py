"""How a gallery in a folder grows: time to fill, memory, disk, time to open, and latency beside brute force of torch.

    python benchmarks/gallery_scale.py [--sizes 10000 100000 1000000] [--out benchmarks/results/gallery_scale.json]
    python benchmarks/gallery_scale.py --indexes 100000 --out benchmarks/results/gallery_indexes.json

Each takes several minutes, a million items more than ten.

Items have three blocks of 171 numbers (513 in all) around 20 items an identity; the gallery stores whole items
(`partial=False`). Each size runs in a process of its own and stops where it takes more than `--memory` GiB or
`--seconds` to fill. Queries are noisy items. `--indexes` compares the indexes that Milvus Lite has with exact search,
on the engine itself, without and with a filter that one item in seven passes: recall of the first 10, and milliseconds
a query in batches of 64.
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
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from trireid import Gallery, Item
from trireid.cli.guard import guarded
from trireid.embedding.embeddings import Embeddings, ModelIdentity
from trireid.files import write_json

BLOCK, CHUNK, QUERIES, TOP = 171, 10_000, 64, 10
WIDTH = 3 * BLOCK
MODEL = ModelIdentity(fingerprint="0" * 64, feature="head", blocks=((0,), (1,), (2,)), width=WIDTH)


def vectors(start: int, stop: int, size: int) -> NDArray[np.float32]:
    """Items of a gallery of some size: a centre for each identity, and noise."""
    generator = np.random.default_rng(start)
    who = generator.integers(0, max(1, size // 20), stop - start)
    rows = np.stack([np.random.default_rng([7, int(each)]).standard_normal(WIDTH, dtype=np.float32) for each in who])
    rows += generator.standard_normal(rows.shape, dtype=np.float32)
    blocks = rows.reshape(len(rows), 3, BLOCK)
    unit: NDArray[np.float32] = blocks / np.linalg.norm(blocks, axis=2, keepdims=True)
    return unit.reshape(len(rows), WIDTH)


def embeddings(rows: NDArray[np.float32], start: int) -> Embeddings:
    """Rows as items."""
    items = tuple(
        Item(images={}, key=f"item{number:09d}", identity=f"identity{number % 997}", camera=f"camera{number % 8}")
        for number in range(start, start + len(rows))
    )
    return Embeddings(rows, np.ones((len(rows), 3), dtype=bool), items, MODEL)


def memory() -> float:
    """GiB of this process."""
    return float(psutil.Process().memory_info().rss) / 2**30


def seconds(work: Callable[[], Any], times: int) -> float:
    """Median of some runs, after one that does not count."""
    work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def measure(size: int, limit: float, longest: float) -> dict[str, Any]:
    """One size."""
    result: dict[str, Any] = {"items": size}
    with tempfile.TemporaryDirectory() as temporary:
        folder, filling, started = Path(temporary) / "gallery", 0.0, time.perf_counter()
        with Gallery.create(folder, MODEL, partial=False) as gallery:
            for start in range(0, size, CHUNK):
                some = embeddings(vectors(start, min(size, start + CHUNK), size), start)
                begin = time.perf_counter()
                gallery.add(some)
                filling += time.perf_counter() - begin
                if memory() > limit or time.perf_counter() - started > longest:
                    return result | {"stopped_at": start + len(some), "memory_gib": memory(), "fill_seconds": filling}
            result |= {"fill_seconds": filling, "memory_after_filling_gib": memory()}
            begin = time.perf_counter()
        result["close_seconds"] = time.perf_counter() - begin
        result["disk_gib"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**30
        begin = time.perf_counter()
        with Gallery.open(folder) as gallery:
            result["open_seconds"] = time.perf_counter() - begin
            queries = embeddings(vectors(2**31, 2**31 + QUERIES, size), 0)
            first = queries.select([0])
            begin = time.perf_counter()
            gallery.query(first, top=TOP)
            result["first_query_seconds"] = time.perf_counter() - begin
            result["one_query_seconds"] = seconds(lambda: gallery.query(first, top=TOP), 5)
            result["batched_query_seconds"] = seconds(lambda: gallery.query(queries, top=TOP), 2) / QUERIES
            result["memory_gib"] = memory()
            found = [match.key for match in gallery.query(first, top=TOP)[0].matches]
    rows = torch.empty((size, WIDTH))
    for start in range(0, size, CHUNK):
        stop = min(size, start + CHUNK)
        rows[start:stop] = torch.from_numpy(vectors(start, stop, size))
    probes = torch.from_numpy(queries.vectors)
    result["torch_one_seconds"] = seconds(lambda: (probes[:1] @ rows.T).topk(TOP), 5)
    result["torch_batched_seconds"] = seconds(lambda: (probes @ rows.T).topk(TOP), 2) / QUERIES
    nearest = (probes[:1] @ rows.T).topk(TOP).indices[0].tolist()
    result["same_as_torch"] = found == [f"item{number:09d}" for number in nearest]
    return result


def measure_index(size: int, kind: str, building: dict[str, int], searching: list[dict[str, int]]) -> dict[str, Any]:
    """One index of Milvus Lite: recall and time, without and with a filter."""
    from milvus_lite.server_manager import server_manager_instance
    from pymilvus import DataType, MilvusClient

    result: dict[str, Any] = {"index": kind, "items": size, "building": building, "searches": []}
    everything = np.concatenate(
        [vectors(start, min(size, start + CHUNK), size) for start in range(0, size, CHUNK)]
    ) / np.sqrt(3.0)
    queries = vectors(2**31, 2**31 + QUERIES, size)
    cosine = queries @ everything.T
    with tempfile.TemporaryDirectory() as temporary:
        path = str(Path(temporary) / "index.db")
        client = MilvusClient(path)
        schema = MilvusClient.create_schema()
        schema.add_field("key", DataType.INT64, is_primary=True)
        schema.add_field("seventh", DataType.INT8)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=WIDTH)
        index = client.prepare_index_params()
        index.add_index("vector", index_type=kind, metric_type="IP", params=building)
        client.create_collection("items", schema=schema, index_params=index)
        begin = time.perf_counter()
        for start in range(0, size, 1000):
            some = range(start, min(size, start + 1000))
            client.upsert("items", [{"key": i, "seventh": i % 7, "vector": everything[i]} for i in some])
        client.flush("items")
        client.close()
        server_manager_instance.release_server(path)  # waits for the index
        result["fill_and_index_seconds"] = time.perf_counter() - begin
        client = MilvusClient(path)
        client.load_collection("items")
        for settings in searching:
            line: dict[str, Any] = {"settings": settings}
            for name, where, allowed in (
                ("all", "", np.ones(size, dtype=bool)),
                ("filtered", "seventh in [3]", np.arange(size) % 7 == 3),
            ):
                best = np.argsort(-np.where(allowed, cosine, -9.0), axis=1)[:, :TOP]

                def search(where: str = where, settings: dict[str, int] = settings) -> Any:
                    parameters = {"metric_type": "IP", "params": settings}
                    return client.search("items", data=list(queries), limit=TOP, filter=where, search_params=parameters)

                hits = [{hit["key"] for hit in each} for each in search()]
                pairs = zip(hits, best, strict=True)
                line[f"recall_{name}"] = float(np.mean([len(own & set(true.tolist())) / TOP for own, true in pairs]))
                line[f"milliseconds_{name}"] = seconds(search, 3) / QUERIES * 1000
            result["searches"].append(line)
        client.close()
        server_manager_instance.release_server(path)
    return result


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--memory", type=float, default=12.0, help="GiB at which a size is given up")
    parser.add_argument("--seconds", type=float, default=3600.0, help="of filling, after which a size is given up")
    parser.add_argument("--indexes", type=int, help="compare indexes on this number of items instead")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if given.one:
        print(json.dumps(measure(given.one, given.memory, given.seconds)))
        return
    results: list[dict[str, Any]] = []
    if given.out and given.out.exists() and not given.indexes:  # other sizes are kept
        before = json.loads(given.out.read_text())["results"]
        results = [each for each in before if each["items"] not in given.sizes]
    if given.indexes:
        results.append(measure_index(given.indexes, "FLAT", {}, [{}]))
        results.append(measure_index(given.indexes, "IVF_FLAT", {"nlist": 256}, [{"nprobe": n} for n in (8, 32, 128)]))
        building = {"M": 16, "efConstruction": 200}
        results.append(measure_index(given.indexes, "HNSW", building, [{"ef": n} for n in (64, 256)]))
    for size in () if given.indexes else given.sizes:
        command = [sys.executable, __file__, "--one", str(size), "--memory", str(given.memory)]
        command += ["--seconds", str(given.seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout))
        print(json.dumps(results[-1], indent=2), flush=True)
        if given.out:
            write_json(given.out, {"threads": torch.get_num_threads(), "torch": torch.__version__, "results": results})
    if given.indexes:
        print(json.dumps(results, indent=2))
        if given.out:
            write_json(given.out, {"threads": torch.get_num_threads(), "results": results})


if __name__ == "__main__":
    with guarded():
        main()
