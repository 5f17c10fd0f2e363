"""Draw the README's picture from a finished run: what SDTPS kept of one triplet, and that query's rank list.

Usage: python docs/make_overview.py runs/demo/run [docs/images/overview.png]
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

import trireid
from trireid.data.images import load_images
from trireid.data.records import Record
from trireid.data.transforms import TestTransform
from trireid.evaluation.saved import load_features
from trireid.report.queries import ShownQuery, shown_queries
from trireid.visualize.patches import patches_figure
from trireid.visualize.ranklist import rank_list_figure

NUM_PLACES = 8
WIDTH = 1600  # pixels of the picture
FEATURE = "joint"


def main(run: Path, target: Path) -> None:
    """Write the picture of a run."""
    query = typical_query(run)
    title = f"Query {query.record.name}: average precision {query.average_precision:.2f}"
    ranked = rank_list_figure(query.record, query.entries, title=title)
    write(beside(kept_patches(run, query.record), ranked), target)


def typical_query(run: Path) -> ShownQuery:
    """The query whose average precision is nearest to the mean, neither the best nor the worst of the run.

    Only queries with right and wrong items among the first five count, so that the picture shows both marks.
    """
    saved = load_features(run)
    every = shown_queries(saved, feature=FEATURE, num_queries=len(saved.query.records), top=NUM_PLACES)
    queries = [query for reason in every.values() for query in reason]
    goal = sum(query.average_precision for query in queries) / len(queries)
    mixed = [query for query in queries if len({entry.matches for entry in query.entries[:5]}) == 2]
    return min(mixed or queries, key=lambda query: abs(query.average_precision - goal))


def kept_patches(run: Path, record: Record) -> Figure:
    """The patches of a record that the trained model keeps."""
    checkpoint, model = trireid.load_checkpoint(run), trireid.load_model(run)
    data = checkpoint.config.data
    transform = TestTransform(data.image_size, data.mean, data.std, data.interpolation)
    images = transform(load_images(record))[None]  # (1, M, 3, H, W)
    camera = torch.tensor([checkpoint.label_map.camera_index(record.camera)])
    present = torch.tensor([[source is not None for source in record.images]])
    with torch.inference_mode():
        out = model(images, present=present, camera=camera)
    return patches_figure(record, out.selection["sdtps"], size=data.image_size, title="Patches kept by SDTPS")


def beside(left: Figure, right: Figure) -> Image.Image:
    """Two figures side by side as one image, drawn at one height and at `WIDTH` together."""
    shapes = [figure.get_figwidth() / figure.get_figheight() for figure in (left, right)]
    height = round(WIDTH / sum(shapes))
    picture = Image.new("RGB", (WIDTH, height), "white")
    picture.paste(pixels(left, height), (0, 0))
    picture.paste(pixels(right, height), (round(height * shapes[0]), 0))
    return picture


def pixels(figure: Figure, height: int) -> Image.Image:
    """A figure as an image of this height."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white", dpi=height / figure.get_figheight())
    return Image.open(stream).convert("RGB")


def write(picture: Image.Image, target: Path) -> None:
    """Save under a temporary name, then rename; 256 colours are enough and keep the file small."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    picture.quantize(256).save(temporary, format="PNG", optimize=True)
    temporary.replace(target)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) == 3 else "docs/images/overview.png"))
