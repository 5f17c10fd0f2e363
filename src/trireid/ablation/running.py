"""The runs of an ablation: each in its own process, several at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trireid.ablation.forking import ForkedRun, can_fork
from trireid.ablation.grid import Job, job_settings
from trireid.files import locked, writing
from trireid.train.run_files import CONFIG_FILE


def run_jobs(
    jobs: Sequence[Job],
    *,
    config_path: Path,
    overrides: Sequence[str],
    parallel: int = 1,
    devices: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Job, str]]:
    """Run every job that has no metrics.json yet, each in its own process; a started run is resumed.

    Args:
        jobs: from `plan`.
        config_path: the common configuration.
        overrides: changes for all cells, applied before those of the cell.
        parallel: number of processes at the same time.
        devices: CUDA devices for the processes in turn, named as in CUDA_VISIBLE_DEVICES; empty: the environment is
            not changed.
        progress: called with (finished jobs, all jobs).

    Returns:
        the jobs that failed, each with the last line of its log; the others are finished.
    """
    waiting = [job for job in jobs if not job.is_finished]
    forks = can_fork() and len(waiting) > 1  # the server takes longer to start than one run
    places = list(range(parallel))  # free places; a run that ends frees its place for the next
    running: dict[Process, _Running] = {}
    failed: list[tuple[Job, str]] = []
    done = len(jobs) - len(waiting)
    with _ended_with_this_one(running):
        while waiting or running:
            while waiting and places:
                job, place = waiting.pop(0), places.pop(0)
                device = devices[place % len(devices)] if devices else None
                logged = _log_file(job).stat().st_size if _log_file(job).exists() else 0
                process = _start(job, config_path, overrides, parallel=parallel, device=device, forks=forks)
                running[process] = _Running(job, place, logged)
            time.sleep(0.2)
            for process in [each for each in running if each.poll() is not None]:
                ended = running.pop(process)
                places.append(ended.place)
                done += 1
                if process.returncode != 0:
                    failed.append((ended.job, _last_line(ended) or f"exit code {process.returncode}"))
            if progress is not None:
                progress(done, len(jobs))
    return failed


Process = ForkedRun | subprocess.Popen[bytes]


@dataclass(frozen=True)
class _Running:
    """A started job, the place that it takes, and the size of its log before it started, in bytes."""

    job: Job
    place: int
    logged: int


@contextmanager
def only_ablation(out: Path) -> Iterator[None]:
    """Make a folder, and keep other ablations out of it while the block runs.

    Raises:
        RunError: another ablation is running in it, or it cannot be made.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out, taken=f"another ablation is running in {out}: wait until it ends, or give another --out"):
        yield


@contextmanager
def _ended_with_this_one(running: Mapping[Process, object]) -> Iterator[None]:
    """End all runs when this process stops, also by SIGTERM (from `kill` or a scheduler).

    A run left behind would write into the folder in which the next call resumes it.
    """
    in_main = threading.current_thread() is threading.main_thread()  # only this thread may set a handler
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number)) if in_main else None
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def visible_devices() -> list[str]:
    """The CUDA devices of this process, named as in CUDA_VISIBLE_DEVICES and found without initialising CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device for device in named.split(",") if device]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _start(
    job: Job, config_path: Path, overrides: Sequence[str], *, parallel: int, device: str | None, forks: bool
) -> Process:
    resumed = ["--resume"] if (job.folder / CONFIG_FILE).is_file() else []
    arguments = ["train", "--config", str(config_path), *job_settings(job, overrides), *resumed]
    environment = dict(os.environ)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    if parallel > 1:
        # Several runs with a thread per core each would slow each other down.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // parallel)))
    log = _log_file(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()  # there is a log also of a run that ends before its first line
    if forks:
        return ForkedRun(arguments, log=log, environment=environment)
    with log.open("ab") as stream:
        command = [sys.executable, "-m", "trireid", *arguments]
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)


def _log_file(job: Job) -> Path:
    return job.folder.with_suffix(".log")


def _last_line(ended: _Running) -> str:
    """The last line that a process wrote to its log; an earlier one may have written there before."""
    with _log_file(ended.job).open("rb") as log:
        log.seek(ended.logged)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
