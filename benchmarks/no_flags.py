"""What a user gets who sets nothing: seconds of epochs, compilation and evaluation included, beside all flags off.

About two and a half minutes on a GPU with 16 cores; --quick is a tiny model for a CPU:

python benchmarks/no_flags.py --names <folder of the name lists> --out runs/no_flags
python benchmarks/no_flags.py --quick

Each row is a process of its own, `train_net.py` with one of DeMo's configurations, batch 64, ViT-B/16 with random
weights at 256 x 128, on a synthetic set with RGBNT201's true file names, and an evaluation after each epoch. The run
is set to 50 epochs, so that it chooses as a whole run does, and is stopped after a few. "cold" starts with an empty
cache of the compiler, "warm" finds what the row before left there. "Compilation" is what the log says of it and what
the first epoch takes beyond the median of those from the third on; "50 epochs" is compilation and 50 such medians;
"start" is the time from the start of the process to the end of its first epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from trireid.cli.guard import guarded

EPOCHS = 50
OFF = ("train.compile", "false", "train.cuda_graph", "false")
TINY = (
    "model.backbone.depth", "2", "model.backbone.width", "32", "model.backbone.num_heads", "2",
    "INPUT.SIZE_TRAIN", "[32, 16]", "INPUT.SIZE_TEST", "[32, 16]", "INPUT.PADDING", "2", "MODEL.DEVICE", "cpu",
    "SOLVER.IMS_PER_BATCH", "16", "DATALOADER.NUM_WORKERS", "0",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One process: its name in the table, its configuration, and settings in upstream's form."""

    name: str
    config: str
    settings: tuple[str, ...] = ()


ROWS = (
    Row("SDTPS, flags off", "DeMo_SDTPS", OFF),
    Row("SDTPS, no flags, cold", "DeMo_SDTPS"),
    Row("SDTPS, no flags, warm", "DeMo_SDTPS"),
    Row("HDM + ATMoE, no flags, warm", "DeMo"),
    Row("HDM + ATMoE, flags off", "DeMo", OFF),
)


@dataclass(frozen=True)
class Measured:
    """What one process took, in seconds."""

    name: str
    start: float  # of the process, to the end of its first epoch
    compiled: float  # as the log says
    first: float
    median: float
    train: float  # median of the steps alone
    evaluation: float  # the same
    slowest: float  # from the third epoch on
    speed: str

    @property
    def compilation(self) -> float:
        """What compilation and recording cost."""
        return self.compiled + self.first - self.median

    @property
    def whole(self) -> float:
        """Fifty epochs."""
        return self.compilation + EPOCHS * self.median


def epochs_of(folder: Path) -> list[dict[str, float]]:
    """The lines of a run that were written so far."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def measure(row: Row, args: argparse.Namespace, data: Path) -> Measured:
    """Start a run, and stop it after its epochs."""
    folder = args.out / re.sub(r"\W+", "-", row.name)
    shutil.rmtree(folder, ignore_errors=True)
    if row.name.endswith("cold"):
        shutil.rmtree(args.out / "compiler", ignore_errors=True)
    settings = ["SOLVER.IMS_PER_BATCH", "64", "MODEL.PRETRAIN_PATH_T", "none", *row.settings]
    settings += [*(TINY if args.quick else ()), "DATASETS.ROOT_DIR", str(data), "OUTPUT_DIR", str(folder)]
    settings += ["SOLVER.MAX_EPOCHS", str(EPOCHS)]
    command = [sys.executable, "train_net.py", "--config_file", f"configs/RGBNT201/{row.config}.yml", *settings]
    places = {"TORCHINDUCTOR_CACHE_DIR": str(args.out / "compiler")}
    begun, first_end = time.monotonic(), 0.0
    log = args.out / f"{folder.name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **places}, start_new_session=True
        )
        try:
            while process.poll() is None and len(epochs_of(folder)) < args.epochs:
                time.sleep(0.05)
                if not first_end and epochs_of(folder):
                    first_end = time.monotonic() - begun
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    epochs, text = epochs_of(folder)[: args.epochs], log.read_text(encoding="utf-8", errors="replace")
    shutil.rmtree(folder, ignore_errors=True)
    if len(epochs) < args.epochs:
        raise SystemExit(f"{row.name} ended early; its last lines:\n" + "\n".join(text.splitlines()[-12:]))
    seconds = [epoch["seconds"] for epoch in epochs]
    compiled = re.search(r"the blocks were compiled in ([\d.]+) s", text)
    speed = re.search(r"speed: (.*)", text)
    return Measured(
        name=row.name,
        start=first_end,
        compiled=float(compiled[1]) if compiled else 0.0,
        first=seconds[0],
        median=statistics.median(seconds[2:]),
        train=statistics.median(epoch["step_seconds"] for epoch in epochs[2:]),
        evaluation=statistics.median(epoch["evaluation_seconds"] for epoch in epochs[2:]),
        slowest=max(seconds[2:]),
        speed=speed[1] if speed else "not in the log",
    )


def report(rows: list[Measured]) -> None:
    """The table, as Markdown, and what each run chose."""
    columns = (
        "run",
        "first epoch",
        "compilation",
        "median epoch",
        "steps",
        "evaluation",
        "slowest",
        "50 epochs",
        "start",
    )
    print(f"| {' | '.join(columns)} |\n|---{'|---:' * (len(columns) - 1)}|")
    plain = {row.name.split(",")[0]: row.whole for row in rows if row.name.endswith("off")}
    for row in rows:
        head = row.name.split(",")[0]
        ratio = f" ({plain[head] / row.whole:.2f}x)" if head in plain else ""
        values = [row.first, row.compilation, row.median, row.train, row.evaluation, row.slowest]
        shown = " | ".join(f"{value:.2f}" for value in values)
        print(f"| {row.name} | {shown} | {row.whole:.0f}{ratio} | {row.start:.1f} |", flush=True)
    for row in rows:
        print(f"{row.name}: {row.speed}")


def main() -> None:
    """Measure all rows, the most important first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=Path, help="folder of RGBNT201_train.txt and RGBNT201_test.txt")
    parser.add_argument("--out", type=Path, default=Path("runs/no_flags"))
    parser.add_argument("--data", type=Path, help="folder that holds RGBNT201/, which is made where it is missing")
    parser.add_argument("--epochs", type=int, default=5, help="that each run takes before it is stopped, at least 3")
    parser.add_argument("--rows", type=int, default=4, help="how many of the rows are measured")
    parser.add_argument("--limit", type=float, default=145, help="seconds after which no further row is started")
    parser.add_argument("--quick", action="store_true", help="two rows of a tiny model and a few images, on the CPU")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.epochs = 2, 3
    begun = time.monotonic()
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    data = (args.data or Path(mkdtemp(prefix="no_flags-"))).absolute()
    if not (data / "RGBNT201").is_dir():
        synth = [sys.executable, "-m", "trireid", "synth", "--layout", "rgbnt201", "--out", str(data / "RGBNT201")]
        synth += ["--names", str(args.names)] if args.names else ["--ids", "12", "--cameras", "2"]
        size = "32x16" if args.quick else "256x128"
        subprocess.run([*synth, "--size", size, "--workers", str(os.cpu_count())], check=True)
    print(f"data: {time.monotonic() - begun:.0f} s", flush=True)
    rows: list[Measured] = []
    for row in ROWS[: args.rows]:
        if rows and time.monotonic() - begun > args.limit:
            print(f"{row.name} and later rows: not measured, {args.limit:.0f} s are over")
            break
        rows.append(measure(row, args, data))
        print(f"{row.name}: {time.monotonic() - begun:.0f} s since the start", flush=True)
    report(rows)
    found = [{**vars(row), "compilation": row.compilation, "fifty_epochs": row.whole} for row in rows]
    (args.out / "no_flags.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.data is None:
        shutil.rmtree(data)


if __name__ == "__main__":
    with guarded():
        main()
