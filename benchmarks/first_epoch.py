"""The first epoch of training from JPEG files with a cold page cache, beside decoding alone and training alone.

About 80 s on a GPU with 16 cores; a small form runs on a CPU:

python benchmarks/first_epoch.py --device cuda --out runs/first_epoch.json
python benchmarks/first_epoch.py --quick

The images are synthetic (smooth patterns with noise, JPEG quality 90). "Decoding" reads, decodes and resizes all files
with all workers and nothing else. "Training" is an epoch of ViT-B/16 (random weights, no head, `train_epoch`) from
pixels that are already kept where `data.cache=auto` puts them. "First epoch" starts with the first byte that is read
and ends with the last step: once "at once", where the images are decoded while training begins (`data.filling`), and
once "before", where all of them are decoded first, by as many threads. The files are dropped from the page cache before
each reading, where the system allows it. The target is a first epoch of at least 0.9 of the smaller of the two rates.

A first epoch includes the start of the processes that decode ("started"), and the time until the first step begins
("first step", for which two batches are decoded); "rate after it" is that of all triplets in the time that is left.
"Decoding" includes the start as well. `--skip-before` leaves the column "decoded before" out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from accelerate import Accelerator
from cold_files import forget, write_images

from trireid.benchmark import describe_machine
from trireid.cli.guard import guarded
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.data.augment import TrainTransform
from trireid.data.filling import Filler
from trireid.data.labels import LabelMap
from trireid.data.loader import set_epoch, train_loader
from trireid.data.pixels import Pixels, open_pixels
from trireid.data.records import ImageSource, Record
from trireid.data.workers import worker_count
from trireid.files import write_json
from trireid.models.build import build_model
from trireid.names import MODALITIES
from trireid.train.epoch import make_gradients, train_epoch
from trireid.train.progress import progress_bar
from trireid.train.recording import record_steps

TARGET = 0.9
PER_IDENTITY = 8


def write_triplets(folder: Path, count: int, size: tuple[int, int], workers: int) -> list[Record]:
    """JPEG triplets of one size, and their records."""
    records, tasks = [], []
    for name in MODALITIES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        paths = [folder / name / f"{number:06d}.jpg" for name in MODALITIES]
        tasks += [(path, 3 * number + place, size) for place, path in enumerate(paths)]
        sources = tuple(ImageSource(path) for path in paths)
        records.append(Record(f"{number:06d}", sources, identity=f"{number // PER_IDENTITY:04d}", camera="1"))
    write_images(tasks, workers=workers)
    return records


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class Training:
    """A model with its optimiser, and an epoch of it; compiled and recorded before anything is measured."""

    def __init__(self, given: argparse.Namespace) -> None:
        lines = ["model.head=none", "model.backbone.pretrained=none", "model.backbone.name=vit_base_patch16_224"]
        tiny = ["model.backbone.name=tiny", "model.backbone.patch_size=16"]
        self.given, self.device = given, torch.device(given.device)
        cuda = self.device.type == "cuda"
        self.config: Config = override_config(Config(), [*lines, *(tiny if given.quick else [])])
        self.accelerator = Accelerator(mixed_precision="bf16" if cuda else "no", cpu=not cuda)
        torch.manual_seed(0)
        model = build_model(self.config.model, image_size=(256, 128), num_classes=4096, num_cameras=1).to(self.device)
        if given.compile:
            model.backbone.compile_blocks()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=cuda)
        self.model = self.accelerator.prepare_model(model)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        settings = self.config.data
        augmentation = settings.augmentation.model_dump(exclude={"interpolation", "dihedral_identities"})
        gradients = partial(
            make_gradients,
            model=self.model,
            accelerator=self.accelerator,
            settings=self.config.train,
            transform=TrainTransform(mean=settings.mean, std=settings.std, **augmentation),
            complete=True,
        )
        self.gradients = record_steps(gradients, model, requested=given.record, possible=cuda)

    def loader(self, records: Sequence[Record], pixels: Pixels) -> Any:
        """The loader of a run; its sampler is set to the first epoch."""
        labels = LabelMap.from_records(records)
        on_cuda = self.device.type == "cuda"
        loader = train_loader(
            records,
            pixels=pixels,
            label_map=labels,
            batch_size=self.given.batch,
            num_instances=4,
            seed=1,
            workers=self.given.workers,
            pin_memory=on_cuda,
        )
        set_epoch(loader, 1)
        return loader

    def epoch(self, loader: Any) -> dict[str, Any]:
        """An epoch; the count of its triplets, the time that it waited for data, and when its first step began."""
        began: list[float] = []

        def gradients(batch: Any) -> Any:
            began.append(time.perf_counter())
            return self.gradients(batch)

        prepared = self.accelerator.prepare_data_loader(loader)
        set_epoch(prepared, 1)
        with progress_bar("epoch", enabled=False) as bar:
            entry = train_epoch(
                self.model,
                prepared,
                self.optimizer,
                gradients=gradients,
                accelerator=self.accelerator,
                settings=self.config.train,
                epoch=1,
                bar=bar,
            )
        wait(self.device)
        return {**entry, "began": began[0]}


def opened(records: Sequence[Record], training: Training, filler: Filler | None) -> Pixels:
    """The pixels of a set as a run opens them."""
    return open_pixels(
        records,
        image_size=(256, 128),
        interpolation="bilinear",
        cache="auto",
        device=training.device,
        workers=training.given.workers,
        filler=filler,
        name="training",
    )


def decode_all(records: Sequence[Record], training: Training) -> float:
    """Triplets per second of the filler with nothing beside it."""
    started = time.perf_counter()
    filler = Filler(workers=training.given.workers)
    filler.add(records, image_size=(256, 128), interpolation="bilinear", ranges=(None,) * 3, device=torch.device("cpu"))
    filler.start()
    assert filler._work is not None
    filler._work.result()
    filler.close()
    return len(records) / (time.perf_counter() - started)


def at_once(records: Sequence[Record], training: Training) -> tuple[Any, dict[str, Any]]:
    """The first epoch while the images are decoded."""
    filler = Filler(workers=training.given.workers)
    loader = training.loader(records, opened(records, training, filler))
    filler.start([position for batch in loader.batch_sampler for position, _ in batch])
    running = time.perf_counter()
    entry = training.epoch(loader)
    filler.close()
    return loader, {**entry, "running": running}


def before(records: Sequence[Record], training: Training) -> tuple[Any, dict[str, Any]]:
    """The first epoch once all images are decoded."""
    loader = training.loader(records, opened(records, training, None))
    return loader, training.epoch(loader)


def timed(work: Callable[[], tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]]:
    """What an epoch gave, with its rate from the call on."""
    started = time.perf_counter()
    loader, entry = work()
    seconds, count = time.perf_counter() - started, entry["num_triplets"]
    entry |= {"wall": seconds, "rate": count / seconds, "waiting": entry["data_seconds"] / seconds}
    entry |= {name: entry[name] - started for name in ("began", "running") if name in entry}
    entry["rate_after"] = count / (seconds - entry["began"])
    return loader, entry


def measure(name: str, records: list[Record], training: Training, megabytes: float) -> dict[str, Any]:
    """All rates of one set of files; prints its row."""
    files = [source.path for record in records for source in record.images if source is not None]
    cold = forget(files)
    decoding = decode_all(records, training)
    late = {}
    if not training.given.skip_before:
        forget(files)
        _, late = timed(lambda: before(records, training))
    forget(files)
    loader, first = timed(lambda: at_once(records, training))
    _, steady = timed(lambda: (loader, training.epoch(loader)))
    _, steady = timed(lambda: (loader, training.epoch(loader)))
    least = min(decoding, steady["rate"])
    row = {
        "set": name,
        "triplets": len(records),
        "megabytes": megabytes,
        "files_dropped_from_the_page_cache": cold,
        "decoding": decoding,
        "training": steady["rate"],
        "first_epoch": first["rate"],
        "first_epoch_seconds": first["wall"],
        "started_seconds": first["running"],
        "first_step_seconds": first["began"],
        "rate_after_first_step": first["rate_after"],
        "waiting_share": first["waiting"],
        "waiting_share_of_training_alone": steady["waiting"],
        "before": late.get("rate"),
        "before_seconds": late.get("wall"),
        "ratio": first["rate"] / least,
        "ratio_before": late["rate"] / least if late else None,
    }
    shown = f"{late['rate']:,.0f} | {row['ratio_before']:.2f}" if late else "- | -"
    sys.stdout.write(
        f"| {name} | {decoding:,.0f} | {steady['rate']:,.0f} | {first['rate']:,.0f} | **{row['ratio']:.2f}** | "
        f"{first['running']:.2f} | {first['began']:.2f} | {first['rate_after']:,.0f} | {shown} |\n"
    )
    sys.stdout.flush()
    return row


def main() -> None:
    """Write the files, measure, print a table, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few files and a tiny model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--triplets", type=int, default=12_288, help="of 256 x 128 pixels")
    parser.add_argument("--frames", type=int, default=1024, help="triplets of 720 x 1280 pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--record", action="store_true", help="record the steps as a CUDA graph")
    parser.add_argument("--skip-before", action="store_true", help="leave out decoding before training")
    parser.add_argument("--folder", type=Path, default=None, help="for the files; removed at the end")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    if given.quick:
        given.triplets, given.frames, given.batch = 64, 16, 8
    given.workers = worker_count(given.workers)
    folder = Path(mkdtemp(prefix="first-epoch-", dir=given.folder))
    try:
        training = Training(given)
        sets = {"256 x 128": (given.triplets, (256, 128)), "720 x 1280": (given.frames, (720, 1280))}
        written = {}
        for name, (count, size) in sets.items():
            written[name] = write_triplets(folder / name.replace(" ", ""), count, size, given.workers)
        warm = written["256 x 128"][: 16 * given.batch]
        before(warm, training)  # compiles and records
        rates, times = ("decoding alone", "training alone", "first epoch"), ("started, s", "first step, s")
        columns = ("files", *rates, "of the smaller", *times, "rate after it", "decoded before", "of the smaller")
        title = f"triplets per second, {given.workers} workers"
        sys.stdout.write(f"{title}\n| {' | '.join(columns)} |\n|---{'|---:' * (len(columns) - 1)}|\n")
        rows = []
        for name, records in written.items():
            paths = [source.path for record in records for source in record.images if source is not None]
            megabytes = sum(path.stat().st_size for path in paths) / 1e6
            rows.append(measure(name, records, training, megabytes))
    finally:
        shutil.rmtree(folder)
    result = {
        "machine": describe_machine(training.device),
        "workers": given.workers,
        "batch": given.batch,
        "compiled": given.compile,
        "recorded": given.record,
        "target": TARGET,
        "sets": rows,
    }
    if given.out is None:
        sys.stdout.write(f"{json.dumps(result)}\n")
    else:
        write_json(given.out, result)


if __name__ == "__main__":
    with guarded():
        main()
