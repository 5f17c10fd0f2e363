"""Tracks as queries: the mAP of one vector per track beside that of its single frames.

Needs a trained run on images with several frames per identity and camera, such as that of `trireid demo`:

python benchmarks/aggregates.py --run runs/demo/run --out runs/aggregates.json

All frames of one identity from one camera are a track. In every track, frames are degraded at random: a spectrum is
dark with noise, or hidden in part, or not there. A track, or each of its frames, is ranked against all frames of the
other cameras, which are degraded in the same way. "Best frame" is the one with the best average precision, which
nobody knows beforehand; "clearest frame" is the one with the fewest degraded spectra. Quality is 1 for a frame as it
is, and 0.25 for each degraded spectrum less.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from numpy.typing import NDArray

from trireid.cli.guard import guarded
from trireid.data.images import decode_image
from trireid.embedding.aggregate import aggregate
from trireid.embedding.embedder import Embedder
from trireid.embedding.embeddings import Embeddings
from trireid.embedding.items import Item
from trireid.embedding.splits import split_items
from trireid.evaluation.presence import shared_distance, unrelated_cosine
from trireid.files import write_json

SHARES = (0.15, 0.4)
"""Shares of the images that are degraded or absent."""


def degrade(item: Item, share: float, generator: np.random.Generator) -> Item:
    """The item with some of its images dark, hidden in part, or absent; never all absent."""
    images: dict[str, NDArray[np.uint8]] = {}
    lost = 0
    for name, path in item.images.items():
        pixels = decode_image(Path(path)).permute(1, 2, 0).numpy().copy()
        kind = generator.integers(3) if generator.random() < share else None
        lost += kind is not None
        if kind == 0:
            dark = 0.15 * pixels + generator.normal(0, 12, pixels.shape)
            pixels = dark.clip(0, 255).astype(np.uint8)
        elif kind == 1:
            height = pixels.shape[0]
            top = int(generator.integers(0, height // 2))
            pixels[top : top + height // 2] = generator.integers(0, 256, 3)
        if kind != 2 or (not images and name == list(item.images)[-1]):
            images[name] = pixels
    return Item(
        images,
        key=item.key,
        identity=item.identity,
        camera=item.camera,
        quality=max(0.1, 1 - 0.25 * lost),
        metadata={"lost": lost, "track": f"{item.identity}/{item.camera}"},
    )


def average_precision(queries: Embeddings, gallery: Embeddings, unrelated: float) -> NDArray[np.float64]:
    """`(Q,)`, of each query among the items of other cameras."""
    tensors = [torch.from_numpy(np.asarray(each)) for each in (queries.vectors, gallery.vectors)]
    presence = [torch.from_numpy(each.present) for each in (queries, gallery)]
    distances = shared_distance(*tensors, *presence, gallery.model.blocks, unrelated=unrelated).numpy()
    values = []
    for query, row in zip(queries.items, distances, strict=True):
        shown = np.array([item.camera != query.camera for item in gallery.items])
        order = np.argsort(row[shown], kind="stable")
        hits = np.array([item.identity == query.identity for item in gallery.items])[shown][order]
        ranks = np.flatnonzero(hits) + 1
        values.append((np.arange(1, len(ranks) + 1) / ranks).mean())
    return np.array(values)


def measure(embedder: Embedder, items: Sequence[Item], share: float, seed: int) -> dict[str, float]:
    """The mAP of each kind of query, with degradations drawn from one seed."""
    generator = np.random.default_rng(seed)
    degraded = [degrade(item, share, generator) for item in items]
    frames = embedder.embed(degraded)
    vectors, present = torch.from_numpy(frames.vectors), torch.from_numpy(frames.present)
    unrelated = unrelated_cosine(vectors, present, frames.model.blocks)
    single = average_precision(frames, frames, unrelated)
    tracks: dict[str, list[int]] = {}
    for row, item in enumerate(frames.items):
        tracks.setdefault(str(item.metadata["track"]), []).append(row)
    lost = np.array([item.metadata["lost"] for item in frames.items])
    plain = Embeddings(
        frames.vectors, frames.present, tuple(_without_quality(item) for item in frames.items), frames.model
    )
    return {
        "mean_frame": mean(float(single[rows].mean()) for rows in tracks.values()),
        "clearest_frame": mean(float(single[rows[int(lost[rows].argmin())]]) for rows in tracks.values()),
        "best_frame": mean(float(single[rows].max()) for rows in tracks.values()),
        "aggregate": float(average_precision(aggregate(plain, "track"), frames, unrelated).mean()),
        "aggregate_by_quality": float(average_precision(aggregate(frames, "track"), frames, unrelated).mean()),
    }


def _without_quality(item: Item) -> Item:
    return Item({}, key=item.key, identity=item.identity, camera=item.camera, metadata=item.metadata)


def main() -> None:
    """Measure over several seeds, print a table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    embedder = Embedder(given.run, device="cpu")
    items = split_items(given.run, "test").items
    num_tracks = len({(item.identity, item.camera) for item in items})
    result: dict[str, object] = {"frames": len(items), "tracks": num_tracks, "seeds": given.seeds}
    for share in SHARES:
        rows = [measure(embedder, items, share, seed) for seed in range(given.seeds)]
        summary = {
            name: {"mean": mean(row[name] for row in rows), "spread": stdev(row[name] for row in rows)}
            for name in rows[0]
        }
        for name, value in summary.items():
            sys.stdout.write(f"{share:.0%} {name}: mAP {100 * value['mean']:.1f} +- {100 * value['spread']:.1f}\n")
        result[f"mAP with {share:.0%} degraded"] = summary
    if given.out is not None:
        write_json(given.out, result)
    else:
        sys.stdout.write(f"{json.dumps(result)}\n")


if __name__ == "__main__":
    with guarded():
        main()
