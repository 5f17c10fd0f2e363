"""Embed the gallery of a trained run and search in it.

    python examples/embed_and_search.py runs/demo/run

Prints, for the first items, the nearest others with their distances. Any images will do in place of the gallery: one
uint8 tensor (3, h, w) per modality, None where one is missing.
"""

import argparse
from pathlib import Path

import torch

import trireid
from trireid.data.images import load_images
from trireid.data.transforms import EvaluationTransform


def embed(run: Path, records: list) -> torch.Tensor:
    """Joint features (n, D) of records, normalised."""
    model = trireid.load_model(run)
    data = trireid.load_checkpoint(run).config.data
    transform = EvaluationTransform(data.image_size, data.mean, data.std, data.interpolation)
    features = []
    for start in range(0, len(records), 32):
        triplets = [load_images(record) for record in records[start : start + 32]]
        images = torch.stack([transform(triplet) for triplet in triplets])  # (B, 3, 3, H, W)
        present = torch.tensor([[image is not None for image in triplet] for triplet in triplets])  # (B, 3)
        with torch.inference_mode():
            features.append(model(images, present=present).embedding)
    return torch.nn.functional.normalize(torch.cat(features), dim=1)


def main() -> None:
    """Embed, search, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder or a checkpoint, such as runs/demo/run")
    parser.add_argument("--queries", type=int, default=3)
    parser.add_argument("--top", type=int, default=4)
    options = parser.parse_args()
    data = trireid.load_checkpoint(options.run).config.data
    records = list(trireid.scan(data.format, data.root).gallery)
    features = embed(options.run, records)
    nearest = trireid.search(features[: options.queries], features, top=options.top + 1)
    for query, (places, distances) in enumerate(zip(nearest.index, nearest.distance, strict=True)):
        print(f"{records[query].name} (identity {records[query].identity})")
        for place, distance in zip(places[1:].tolist(), distances[1:].tolist(), strict=True):  # the first is itself
            print(f"    {distance:.3f}  {records[place].name} (identity {records[place].identity})")


if __name__ == "__main__":
    main()
