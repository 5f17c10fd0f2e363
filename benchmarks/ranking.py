"""Times of ranking and re-ranking at the sizes of RGBNT100 and Market-1501, beside plain numpy in the same run.

python benchmarks/ranking.py [--device cuda] [--sizes rgbnt100 market1501] [--large 100000] [--out FILE.json]

Features are random: clusters by identity, of different spread. Every time is the best of some repetitions, in seconds.
numpy always runs on the CPU; its literal re-ranking takes about ten seconds (RGBNT100) and a minute (Market-1501), and
`--literal none` leaves it out. `--large N` re-ranks N gallery items from features and reports the peak memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from literal_ranking import ranking, reranking
from torch import Tensor
from torch.nn import functional

from trireid.cli.guard import guarded
from trireid.evaluation.metrics import pairwise_distance, rank_metrics
from trireid.evaluation.rerank import k_reciprocal, k_reciprocal_distance
from trireid.types import Labels, Protocol

SIZES: dict[str, dict[str, int]] = {
    "rgbnt100": {"num_query": 1715, "num_gallery": 8575, "num_identities": 50, "num_cameras": 8},
    "market1501": {"num_query": 3368, "num_gallery": 15913, "num_identities": 750, "num_cameras": 6},
}
NUM_DIRECTIONS, NUM_MOVES, MOVE, NOISE = 16, 6, 0.9, 0.3
PROTOCOL = Protocol("cross-camera")
SETTINGS: dict[str, Any] = {"k1": 20, "k2": 6, "lambda_value": 0.3}


def clustered(
    *, num_query: int, num_gallery: int, num_identities: int, num_cameras: int, dim: int
) -> tuple[Tensor, Tensor, Labels, Labels]:
    """Features at unit length and labels of query and gallery.

    Around the centre of its identity, an item moves in a few common directions (view, light), as learned features do;
    neighbours are then mutual, while noise in all directions would make a few items the neighbours of all others.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    total = num_query + num_gallery
    identity = torch.randint(0, num_identities, (total,), generator=generator)
    camera = torch.randint(0, num_cameras, (total,), generator=generator)
    centres = draw(num_identities, NUM_DIRECTIONS) @ draw(NUM_DIRECTIONS, dim)
    moves = draw(total, NUM_MOVES) @ draw(NUM_MOVES, dim)
    features = functional.normalize(centres[identity] + MOVE * moves + NOISE * draw(total, dim), dim=1)
    labels = Labels(identity, camera, torch.full((total,), -1), torch.arange(total))
    query, gallery = (
        Labels(**{name: value[part] for name, value in vars(labels).items()})
        for part in (slice(num_query), slice(num_query, None))
    )
    return features[:num_query], features[num_query:], query, gallery


def best_time(function: Callable[[], Any], device: torch.device, repetitions: int) -> tuple[float, Any]:
    """The shortest time of some calls in seconds, and the result."""
    times, result = [], None
    for _ in range(repetitions):
        _wait(device)
        start = time.perf_counter()
        result = function()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times), result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_size(name: str, device: torch.device, *, dim: int, repetitions: int, literal: bool) -> dict[str, float]:
    """All times of one size in seconds, and how far the metrics lie from the literal ones."""
    query, gallery, query_labels, gallery_labels = clustered(**SIZES[name], dim=dim)
    pairs = ((query, gallery), (query, query), (gallery, gallery))
    matrices = [pairwise_distance(a.to(device), b.to(device)) for a, b in pairs]
    plain = [matrix.cpu().numpy() for matrix in matrices]
    cpu = torch.device("cpu")
    values = {"numpy argsort": best_time(lambda: np.argsort(plain[0], axis=1), cpu, repetitions)[0]}
    seconds, found = best_time(
        lambda: rank_metrics(matrices[0], query_labels, gallery_labels, PROTOCOL), device, repetitions
    )
    values |= {"ranking": seconds, "ranking / argsort": seconds / values["numpy argsort"]}
    seconds, expected = best_time(lambda: ranking(plain[0], query_labels, gallery_labels), cpu, 1)
    values["literal ranking"] = seconds
    values["ranking, largest difference"] = max(abs(found.as_dict()[key] - value) for key, value in expected.items())
    seconds, again = best_time(lambda: k_reciprocal_distance(*matrices, **SETTINGS), device, repetitions)
    values["re-ranking, distances given"] = seconds
    values["re-ranking, from features"], _ = best_time(
        lambda: k_reciprocal(query.to(device), gallery.to(device), **SETTINGS), device, repetitions
    )
    if literal:
        values["literal re-ranking"], expected_distance = best_time(lambda: reranking(*plain, **SETTINGS), cpu, 1)
        values["literal re-ranking / re-ranking"] = values["literal re-ranking"] / seconds
        values["re-ranking, largest difference"] = float(np.abs(again.cpu().numpy() - expected_distance).max())
    return values


def measure_large(num_gallery: int, device: torch.device, *, num_query: int, dim: int) -> dict[str, float]:
    """Time and peak memory (GiB; of the process on a CPU, of the allocator on a device) of re-ranking features."""
    query, gallery, _, _ = clustered(
        num_query=num_query, num_gallery=num_gallery, num_identities=num_gallery // 20, num_cameras=6, dim=dim
    )
    seconds, _ = best_time(lambda: k_reciprocal(query.to(device), gallery.to(device), **SETTINGS), device, 1)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"re-ranking, from features": seconds, "peak memory (GiB)": peak}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--literal", nargs="*", choices=[*SIZES, "none"], default=["rgbnt100"])
    parser.add_argument("--large", type=int, help="gallery items of one more re-ranking")
    parser.add_argument("--num-query", type=int, default=3000, help="queries of --large")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    is_cuda = options.device.type == "cuda"
    device_name = torch.cuda.get_device_name(options.device) if is_cuda else platform.processor() or platform.machine()
    report: dict[str, Any] = {
        "device": device_name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "dim": options.dim,
        "sizes": {},
    }
    for name in options.sizes:
        literal = name in options.literal
        report["sizes"][name] = measure_size(
            name, options.device, dim=options.dim, repetitions=options.repetitions, literal=literal
        )
    if options.large:
        report["sizes"][f"{options.num_query} x {options.large}"] = measure_large(
            options.large, options.device, num_query=options.num_query, dim=options.dim
        )
    for name, values in report["sizes"].items():
        print(f"{name} on {device_name}, {report['threads']} threads")
        for label, value in values.items():
            print(f"  {label:34}{value:12.4g}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with guarded():
        main()
