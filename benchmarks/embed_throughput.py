"""Embedding from JPEG files on a disk: end to end, beside decoding alone and the model alone, all in one run.

For one GPU with 16 cores; a small form runs on a CPU:

python benchmarks/embed_throughput.py --out runs/embed_throughput.json --device cuda
python benchmarks/embed_throughput.py --quick

The images are synthetic (smooth patterns with noise, JPEG quality 90). "Decoding" is the embedder's own: reading the
files, decoding and resizing by as many workers as the embedder uses, into the batches that the model takes. "Model" is
ViT-B/16 (random weights, no head) on three modalities with pixels that are already on the device. The target is an
end-to-end rate of at least 0.9 of the smaller of the two.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from cold_files import forget, write_images

from trireid.benchmark import describe_machine
from trireid.cli.guard import guarded
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.data.images import decode_image
from trireid.data.labels import LabelMap
from trireid.embedding.ahead import PROCESSES_FROM, decoded_batches, num_cores
from trireid.embedding.embedder import Embedder
from trireid.embedding.items import Item
from trireid.embedding.streaming import EmbeddingCounts
from trireid.files import write_json
from trireid.models.build import build_model
from trireid.names import MODALITIES
from trireid.train.checkpoint import save_checkpoint
from trireid.types import Batch

TARGET = 0.9


def write_triplets(folder: Path, count: int, size: tuple[int, int]) -> list[Item]:
    """JPEG triplets of one size, and the items."""
    items, tasks = [], []
    for name in MODALITIES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        images = {name: folder / name / f"{number:06d}.jpg" for name in MODALITIES}
        tasks += [(path, 3 * number + place, size) for place, path in enumerate(images.values())]
        items.append(Item({name: str(path) for name, path in images.items()}, key=str(number)))
    write_images(tasks, workers=num_cores())
    return items


def repeated(items: Sequence[Item], times: int) -> list[Item]:
    """The items several times, each with a key of its own."""
    return [Item(item.images, key=f"{item.key}-{time}") for time in range(times) for item in items]


def make_checkpoint(folder: Path, *, quick: bool) -> Path:
    """A checkpoint of random weights."""
    tiny = ["model.backbone.name=tiny", "model.backbone.patch_size=16"]
    lines = ["model.head=none", "model.backbone.pretrained=none", "model.backbone.name=vit_base_patch16_224"]
    config = override_config(Config(), [*lines, *(tiny if quick else []), "train.precision=auto"])
    torch.manual_seed(0)
    model = build_model(config.model, image_size=config.data.image_size, num_classes=0, num_cameras=0)
    path = folder / "model.safetensors"
    save_checkpoint(path, model, config=config, label_map=LabelMap((), ()), epoch=0)
    return path


def rate(count: int, work: Callable[[], object]) -> float:
    """Triplets per second of some work."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def decoding_rate(embedder: Embedder, items: Sequence[Item]) -> float:
    """Triplets per second of the embedder's decoding alone."""

    def work() -> None:
        for _ in decoded_batches(
            items,
            embedder._decoder,
            batch_size=embedder.batch_size,
            workers=embedder.workers,
            device=embedder.device,
            total=len(items),
        ):
            pass

    return rate(len(items), work)


def model_rate(checkpoint: Path, *, device: str, batch_size: int, seconds: float) -> float:
    """Triplets per second of the model on pixels that are on the device; compiled and recorded on CUDA."""
    embedder = Embedder(checkpoint, device=device, batch_size=batch_size, fast=True)
    features, on = embedder._features, embedder.device
    pixels = torch.randint(0, 256, (batch_size, 3, 3, 256, 128), dtype=torch.uint8, device=on)
    number = torch.arange(batch_size)
    batch = Batch(pixels, torch.ones(batch_size, 3, dtype=torch.bool), number, number, number, number)
    if features._fast is not None:
        features._fast.prepare(batch_size, batch_size=batch_size)

    def step() -> None:
        if features._fast is None or features._fast(batch) is None:
            with torch.inference_mode():
                features.model(features.transform(pixels, batch.present.to(on)))

    def wait() -> None:
        if on.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    wait()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(5 if on.type == "cuda" else 1):
            step()
            done += batch_size
        wait()
    return done / (time.perf_counter() - started)


def end_to_end(embedder: Embedder, items: Sequence[Item]) -> dict[str, float]:
    """Triplets per second of the whole, with its start and without the first tenth, and what was busy."""
    counts, started = EmbeddingCounts(), time.perf_counter()
    marks: list[tuple[int, float]] = []
    done = 0
    for batch in embedder.stream(items, counts=counts, total=len(items)):
        done += batch.num_read
        marks.append((done, time.perf_counter() - started))
    steady = [mark for mark in marks if mark[0] >= len(items) / 10] or marks[:1]
    (first, early), (last, late) = steady[0], steady[-1]
    return {
        "triplets_per_second": done / late,
        "without_start": (last - first) / (late - early) if last > first else done / late,
        "model_share": counts.model / late,
        "decoding_cores": counts.decoding / late,
    }


def gpu_decoding(items: Sequence[Item], *, batch: int) -> dict[str, Any]:
    """JPEG decoding on the GPU by torchvision: its rate in triplets per second, and how its pixels differ."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    paths = [str(path) for item in items for path in item.images.values()]
    parts = [paths[start : start + batch] for start in range(0, len(paths), batch)]

    def decoded() -> Iterator[list[torch.Tensor]]:
        with ThreadPoolExecutor(num_cores()) as pool:
            for part in parts:
                yield decode_jpeg(list(pool.map(read_file, part)), mode=ImageReadMode.RGB, device="cuda")

    try:
        next(decoded())
        speed = rate(len(items), lambda: [torch.cuda.synchronize() for _ in decoded()])
        theirs = next(decoded())
    except (RuntimeError, TypeError, ValueError) as error:
        return {"failed": str(error).split("\n")[0][:200]}
    differences = torch.cat(
        [
            (mine.cpu().int() - decode_image(Path(path)).int()).abs().flatten()
            for mine, path in zip(theirs, parts[0], strict=True)
        ]
    )
    return {
        "triplets_per_second": speed,
        "without_resizing": True,
        "largest_difference": int(differences.max()),
        "mean_difference": float(differences.float().mean()),
        "equal_share": float((differences == 0).float().mean()),
    }


def measure(name: str, items: list[Item], checkpoint: Path, given: argparse.Namespace, model: float) -> dict[str, Any]:
    """All rates of one set of files."""
    embedder = Embedder(checkpoint, device=given.device, batch_size=given.batch, workers=given.workers, fast=True)
    end_to_end(embedder, items[: 2 * given.batch])  # compiles and records
    files = [path for item in items for path in item.images.values()]
    cold = forget(files)
    decoding = decoding_rate(embedder, repeated(items, given.repeats))
    forget(files)
    whole = end_to_end(embedder, repeated(items, given.repeats))
    row: dict[str, Any] = {
        "set": name,
        "triplets": len(items) * given.repeats,
        "files_dropped_from_the_page_cache": cold,
        "megabytes": sum(Path(path).stat().st_size for item in items for path in item.images.values()) / 1e6,
        "decoding": decoding,
        "model": model,
        "end_to_end": whole,
        "ratio": whole["triplets_per_second"] / min(decoding, model),
        "ratio_without_start": whole["without_start"] / min(decoding, model),
    }
    if embedder.device.type == "cuda":
        row["decoding_on_the_gpu"] = gpu_decoding(items, batch=3 * given.batch)
    return row


def main() -> None:
    """Write the files, measure, print one line for each set, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few files and a tiny model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--triplets", type=int, default=16_384, help="different triplets of 256 x 128 pixels")
    parser.add_argument("--frames", type=int, default=1_024, help="different triplets of --frame-size")
    parser.add_argument("--frame-size", type=int, nargs=2, default=(720, 1280), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=4, help="how often each file is read")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="for the files; removed at the end")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    if given.quick:
        given.triplets, given.frames, given.repeats, given.batches = 48, 6, 2, [16, 32]
    folder = Path(mkdtemp(prefix="embed-throughput-", dir=given.folder))
    try:
        checkpoint = make_checkpoint(folder, quick=given.quick)
        seconds = 0.2 if given.quick else 3.0
        models = {
            size: model_rate(checkpoint, device=given.device, batch_size=size, seconds=seconds)
            for size in given.batches
        }
        given.batch = max(models, key=lambda size: models[size])
        sys.stdout.write(
            f"model, triplets per second by batch: { {size: round(speed) for size, speed in models.items()} }\n"
        )
        height, width = given.frame_size
        sets = {"256 x 128": (given.triplets, (256, 128)), f"{height} x {width}": (given.frames, (height, width))}
        rows = []
        for name, (count, size) in sets.items():
            items = write_triplets(folder / name.replace(" ", ""), count, size)
            rows.append(measure(name, items, checkpoint, given, models[given.batch]))
            row = rows[-1]
            sys.stdout.write(
                f"{name}: decoding {row['decoding']:.0f}, model {row['model']:.0f}, end to end "
                f"{row['end_to_end']['triplets_per_second']:.0f} triplets per second, ratio {row['ratio']:.3f} "
                f"({row['ratio_without_start']:.3f} without the start; target {TARGET}); "
                f"on the GPU {row.get('decoding_on_the_gpu', 'not measured')}\n"
            )
            sys.stdout.flush()
        result = {
            "machine": describe_machine(Embedder(checkpoint, device=given.device).device),
            "workers": given.workers or num_cores(),
            "processes": given.triplets * given.repeats >= PROCESSES_FROM,
            "batch": given.batch,
            "model_by_batch": models,
            "sets": rows,
        }
        if given.out is not None:
            write_json(given.out, result)
        else:
            sys.stdout.write(f"{json.dumps(result)}\n")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    with guarded():
        main()
