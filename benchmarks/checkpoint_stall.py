"""Whether epochs wait for checkpoints: seconds of epochs each of which ends with a new best, on a ViT-B/16.

About 40 s on a GPU; --quick is a tiny model for a CPU:

python benchmarks/checkpoint_stall.py --device cuda --out runs/checkpoint_stall
python benchmarks/checkpoint_stall.py --quick

Three ways with the same steps: "nothing is written"; "earlier", as it was up to version 0.2.0 (a copy into fresh
memory, the writer of the safetensors library in a thread, a new best waits for the one before it, and the next epoch
for a state); and "now", the parts that `train` uses. Every third epoch also ends with a state. The time of an epoch is
that from its first step to the first step of the next one. The target for "now" is no epoch above 1.15 of the median.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW

from trireid.benchmark import describe_machine
from trireid.cli.guard import guarded
from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.data.labels import LabelMap
from trireid.files import replacing, write_json
from trireid.losses import reid_loss
from trireid.models.build import build_model
from trireid.train.background import BackgroundWriter
from trireid.train.checkpoint import checkpoint_writer, load_checkpoint
from trireid.train.host_copy import HostCopy
from trireid.train.keeper import check_finite
from trireid.train.state import TrainingState, save_state

TARGET, STATE_EVERY = 1.15, 3
LABELS = LabelMap(tuple(f"{number:04d}" for number in range(171)), ("1", "2", "3", "4"))


class Nothing:
    """Writes nothing."""

    def best(self, epoch: int) -> None:
        """A new best."""

    def state(self, epoch: int) -> None:
        """A state."""

    def end(self) -> None:
        """The end of the run."""


class Earlier(Nothing):
    """As up to version 0.2.0."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: AdamW) -> None:
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def best(self, epoch: int, name: str = "best") -> None:
        """Wait for the file before it, copy, and write in a thread."""
        for value in self.model.state_dict().values():
            assert bool(value.isfinite().all())
        self.end()
        weights = {name: value.to("cpu", copy=True).contiguous() for name, value in self.model.state_dict().items()}

        def write() -> None:
            with replacing(self.folder / f"{name}.safetensors") as temporary:
                save_file(weights, temporary, metadata={"epoch": str(epoch)})

        self.pending = self.thread.submit(write)

    def state(self, epoch: int) -> None:
        """Wait until it is on the disk."""
        self.best(epoch, "last")
        self.end()
        save_state(self.folder / "state.pt", state_of(epoch, self.model.state_dict(), self.optimizer.state_dict()))

    def end(self) -> None:
        """Wait for what is written."""
        if self.pending is not None:
            self.pending.result()


class Now(Nothing):
    """The parts and the order of `RunKeeper`."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: AdamW, config: Config) -> None:
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.writer, self.num_best = BackgroundWriter(), 0
        self.checkpoint = partial(checkpoint_writer, model=model, config=config, label_map=LABELS)

    def best(self, epoch: int) -> None:
        """Copy, and write in a thread."""
        check_finite(self.model, epoch)
        write = self.checkpoint(self.folder / "best.safetensors", epoch=epoch)
        self.writer.start(lambda: (write(), self._count())[0], replaceable=True)
        self.writer.wait(replaceable=False)

    def state(self, epoch: int) -> None:
        """Copy, and write in a thread."""
        copied = HostCopy()
        weights = copied(dict(self.model.state_dict()))
        state = state_of(epoch, weights, copied(self.optimizer.state_dict()))
        self.writer.start(self.checkpoint(self.folder / "last.safetensors", epoch=epoch, weights=weights))
        self.writer.start(partial(save_state, self.folder / "state.pt", state))

    def end(self) -> None:
        """Wait for what is written."""
        self.writer.wait()

    def _count(self) -> None:
        self.num_best += 1


def state_of(epoch: int, weights: dict[str, Tensor], optimizer: dict[str, Any]) -> TrainingState:
    """The state of a run without a scaler."""
    return TrainingState(epoch, weights, optimizer, {}, LABELS.to_dict(), 0.0, {})


def epochs_of(way: Nothing, *, step: Callable[[], object], steps: int, epochs: int, wait: Callable[[], None]) -> Any:
    """Seconds of each epoch, and of the waiting at the end."""
    marks = [time.perf_counter()]
    for epoch in range(1, epochs + 1):
        for _ in range(steps):
            step()
        wait()
        way.best(epoch)
        if epoch % STATE_EVERY == 0:
            way.state(epoch)
        marks.append(time.perf_counter())
    way.end()
    return [end - start for start, end in pairwise(marks)], time.perf_counter() - marks[-1]


def make_step(model: nn.Module, optimizer: AdamW, images: Tensor, *, bf16: bool) -> Callable[[], object]:
    """One training step; nothing of it waits for the device."""
    label = torch.arange(len(images), device=images.device) // 4

    def step() -> object:
        model.train()
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
            output = model(images)
        reid_loss(output, label)["total"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return None

    return step


def report(name: str, seconds: list[float], at_end: float) -> dict[str, Any]:
    """Print a row of the table, and return it."""
    median, worst = statistics.median(seconds), max(seconds)
    states = [f"{value:.2f}" for value in seconds]
    sys.stdout.write(
        f"| {name} | {median:.2f} | {worst:.2f} | {worst / median:.2f} | {at_end:.2f} | {', '.join(states)} |\n"
    )
    sys.stdout.flush()
    return {"way": name, "median": median, "worst": worst, "ratio": worst / median, "at_end": at_end, "all": seconds}


def main() -> None:
    """Measure the three ways, print a table, and write `checkpoint_stall.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of an epoch in which nothing is written")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=None, help="folder of the files, which is kept")
    given = parser.parse_args()
    lines = ["model.head=none", "model.backbone.pretrained=none", "model.backbone.name=vit_base_patch16_224"]
    if given.quick:
        lines += ["model.backbone.name=tiny", "model.backbone.patch_size=16", "model.backbone.width=128"]
        given.seconds, given.batch = min(given.seconds, 0.2), 4
    config = override_config(Config(), lines)
    torch.manual_seed(0)
    model = build_model(config.model, image_size=config.data.image_size, num_classes=171, num_cameras=4)
    device = torch.device(given.device)
    on_cuda = device.type == "cuda"
    model = model.to(device)
    optimizer = AdamW(model.parameters(), lr=1e-5, fused=on_cuda)
    images = torch.randn(given.batch, 3, 3, *config.data.image_size, device=device)
    step = make_step(model, optimizer, images, bf16=on_cuda)
    wait = torch.cuda.synchronize if on_cuda else lambda: None
    for _ in range(5):
        step()
    wait()
    started = time.perf_counter()
    for _ in range(5):
        step()
    wait()
    steps = max(2, round(5 * given.seconds / (time.perf_counter() - started)))

    folder = Path(mkdtemp(prefix="checkpoint-stall-")) if given.out is None else given.out
    folder.mkdir(parents=True, exist_ok=True)
    columns = ("way", "median, s", "worst, s", "worst / median", "waiting at the end, s", "all epochs")
    sys.stdout.write(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n")
    run = partial(epochs_of, step=step, steps=steps, epochs=given.epochs, wait=wait)
    now = Now(folder, model, optimizer, config)
    rows = [report("nothing is written", *run(Nothing()))]
    rows.append(report("earlier", *run(Earlier(folder, model, optimizer))))
    rows.append(report("now", *run(now)))
    kept = load_checkpoint(folder / "best.safetensors")
    assert kept.epoch == given.epochs
    assert all(torch.equal(value.cpu(), kept.model_state[name]) for name, value in model.state_dict().items())
    result = {
        "machine": describe_machine(device),
        "safetensors": safetensors.__version__,
        "megabytes_of_best": (folder / "best.safetensors").stat().st_size / 1e6,
        "megabytes_of_state": (folder / "state.pt").stat().st_size / 1e6,
        "best_written_of_epochs": [now.num_best, given.epochs],
        "target": TARGET,
        "ways": rows,
    }
    if given.out is None:
        shutil.rmtree(folder)
        sys.stdout.write(f"{json.dumps(result)}\n")
    else:
        write_json(folder / "checkpoint_stall.json", result)
    verdict = "within" if rows[-1]["ratio"] <= TARGET else "above"
    sys.stdout.write(
        f"now: worst / median {rows[-1]['ratio']:.2f}, {verdict} the target of {TARGET}; {now.num_best} of "
        f"{given.epochs} bests were written, the others were replaced while they waited; safetensors "
        f"{safetensors.__version__}, {result['megabytes_of_best']:.0f} MB and {result['megabytes_of_state']:.0f} MB\n"
    )


if __name__ == "__main__":
    with guarded():
        main()
