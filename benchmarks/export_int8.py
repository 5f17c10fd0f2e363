"""What 8-bit integers cost: cosine to float32 and mAP of the model in torch, of its ONNX file, and of its int8 file.

    python benchmarks/export_int8.py <RUN> --scenes <FOLDER> --weights <FILE>

<RUN> is the run of `trireid demo`: query and gallery of its own test split. <FOLDER> holds real images in the layout of
RGBNT201; they are embedded by a frozen DINOv2 ViT-S/14 (<FILE>: weights of vit_small_patch14_dinov2) at 112 x 112,
without a head. Ranges of int8 are measured on 64 training items in both cases. Int8 is kept where the mAP falls by less
than 0.5. The check of `trireid export` is not run, so that a file is measured also where an export would refuse it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from calibration_coverage import frozen_checkpoint
from numpy.typing import NDArray

from trireid.cli.guard import guarded
from trireid.data.readers import scan
from trireid.embedding.embedder import Embedder
from trireid.embedding.embeddings import Embeddings
from trireid.embedding.items import Item
from trireid.embedding.onnx import OnnxEmbedder
from trireid.embedding.splits import record_item
from trireid.export.images import check_images
from trireid.export.parity import TOLERANCE
from trireid.export.quantising import CALIBRATION_ITEMS, quantised
from trireid.export.tracing import DEFAULT_OPSET, trace
from trireid.export.writing import open_source
from trireid.files import write_json
from trireid.train.checkpoint import Checkpoint, config_here, load_checkpoint

RESULTS = Path(__file__).parent / "results" / "export_int8.json"
LARGEST_FALL = 0.5


def measure(checkpoint: Checkpoint, layout: str, root: Path, *, every: int) -> dict[str, Any]:
    """The mAP of the three on the test split of a data set, and how near their vectors are to those in torch."""
    index = scan(layout, root)
    known = sorted({record.identity for record in (*index.query, *index.gallery)})[::every]
    parts = [[record for record in side if record.identity in known] for side in (index.query, index.gallery)]
    records = list(dict.fromkeys(record for part in parts for record in part))
    items = [replace(record_item(record), key=str(number)) for number, record in enumerate(records)]
    place = {record: number for number, record in enumerate(records)}
    sides = [[place[record] for record in part] for part in parts]
    expected = Embedder(checkpoint, device="cpu").embed(items, progress=True)
    result: dict[str, Any] = {
        "items": len(items),
        "identities": len(known),
        "torch fp32": {"mAP": mean_average_precision(expected, sides)},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents(checkpoint):
            file = Path(folder, "model.onnx")
            file.write_bytes(content)
            found = OnnxEmbedder(file).embed(items, progress=True)
            result[name] = {
                "mAP": mean_average_precision(found, sides),
                "megabytes": len(content) / 1e6,
                **differences(found, expected),
            }
    fall = result["torch fp32"]["mAP"] - result["ONNX int8"]["mAP"]
    result |= {"fall": fall, "allowed_error": TOLERANCE["int8"]}
    exported = result["ONNX int8"]["largest_error"] <= TOLERANCE["int8"]
    return {**result, "kept": bool(fall < LARGEST_FALL), "below_allowed_error": bool(exported)}


def contents(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    """The float32 file and the int8 file, also where an export would refuse it."""
    source = open_source(checkpoint, modalities=None, opset=DEFAULT_OPSET, half=False)
    measured = check_images(source.config, count=CALIBRATION_ITEMS, training=True)
    print(measured.source)
    proto = trace(source.model, source.description, places=None, example=measured.images[:2])
    content, names = proto.SerializeToString(), [each.name for each in proto.graph.input]
    yield "ONNX fp32", content
    yield "ONNX int8", quantised(content, measured.images, names=names, places=None)


def differences(found: Embeddings, expected: Embeddings) -> dict[str, float]:
    """Cosines, and relative errors of the vectors."""
    cosine = (units(found.vectors) * units(expected.vectors)).sum(axis=1)
    length = np.linalg.norm(expected.vectors, axis=1)
    error = np.linalg.norm(found.vectors.astype(np.float64) - expected.vectors, axis=1) / length
    return {
        "cosine_mean": float(cosine.mean()),
        "cosine_least": float(cosine.min()),
        "mean_error": float(error.mean()),
        "largest_error": float(error.max()),
    }


def mean_average_precision(embeddings: Embeddings, sides: Sequence[Sequence[int]]) -> float:
    """In percent; a query does not see itself, nor its identity in its own camera."""
    vectors = units(embeddings.vectors)
    query, gallery = (list(side) for side in sides)
    similarity = vectors[query] @ vectors[gallery].T
    identity, camera = (column(embeddings.items, name) for name in ("identity", "camera"))
    values = []
    for row, number in enumerate(query):
        same = identity[gallery] == identity[number]
        seen = ~(same & (camera[gallery] == camera[number])) & (np.array(gallery) != number)
        hits = same[seen][np.argsort(-similarity[row][seen], kind="stable")]
        if hits.any():
            values.append(float((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean()))
    return 100 * float(np.mean(values))


def column(items: Sequence[Item], name: str) -> NDArray[np.str_]:
    """One label of all items."""
    return np.array([str(getattr(item, name)) for item in items])


def units(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Vectors of length 1."""
    values = vectors.astype(np.float64)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def main() -> None:
    """Measure both, print them and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="of the scenes' identities, one of so many")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    frozen = frozen_checkpoint(given.scenes, given.weights)
    results = {"scenes": measure(frozen, "rgbnt201", given.scenes, every=given.every)}
    print("scenes", results["scenes"])
    checkpoint = load_checkpoint(given.run)
    data = config_here(checkpoint).data
    results["demo"] = measure(checkpoint, data.format, Path(data.root), every=1)
    print("demo", results["demo"])
    write_json(given.out, results)


if __name__ == "__main__":
    with guarded():
        main()
