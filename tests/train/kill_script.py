"""Kills runs of a tiny model in the middle of a writing, checks what is left, and resumes them: DATA FOLDER."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_run import tiny_config
from trireid.config.schema import Config
from trireid.errors import TrireidError
from trireid.train import checkpoint, keeper, state
from trireid.train.checkpoint import load_checkpoint
from trireid.train.keeper import RunKeeper
from trireid.train.loop import train
from trireid.train.runs import read_epochs
from trireid.train.state import load_state

SETTINGS = ("train.epochs=8", "train.checkpoint_every=3", "data.image_size=[16, 16]", "model.head=none")
MAP = (0.1, 0.2, 0.3, 0.25, 0.4, 0.5, 0.6, 0.2)
"""Of each epoch, in place of the measured one: six new bests, some of which follow each other."""
KILLS = (("best", 2), ("best", 3), ("last", 1), ("state", 1), ("state", 2))
"""Which file, and at which of its writings."""


def main() -> None:
    """Compare each killed and resumed run with one that was never stopped."""
    torch.set_num_threads(1)
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    give_metrics()
    forked(train, tiny_config(data, folder / "whole", *SETTINGS), progress=False)
    whole = read_epochs(folder / "whole")
    for name, number in KILLS:
        config = tiny_config(data, folder / f"{name}-{number}", *SETTINGS)
        assert forked(run_until, config, name, number) == -signal.SIGKILL, (name, number)
        check_left(config.output)
        assert forked(train, config, resume=True, progress=False) == 0
        for file in ("last.safetensors", "best.safetensors"):
            one, other = (load_checkpoint(each / file) for each in (folder / "whole", config.output))
            assert (one.epoch, one.figures) == (other.epoch, other.figures), (name, number, file)
            assert all(torch.equal(value, other.model_state[key]) for key, value in one.model_state.items())
        assert [entry["loss"] for entry in read_epochs(config.output)] == [entry["loss"] for entry in whole]
        assert not list(config.output.rglob("*.tmp"))
        sys.stdout.write(f"{name} {number}: killed, resumed, equal\n")


def give_metrics() -> None:
    """Let the mAP of an epoch be that of `MAP`."""
    evaluate, split_result, now = RunKeeper.evaluate, keeper.evaluate_split, [0]

    def evaluated(self: RunKeeper, epoch: int) -> Any:
        now[0] = epoch
        return evaluate(self, epoch)

    def result(*args: Any, **options: Any) -> Any:
        found = split_result(*args, **options)
        rankings = {name: replace(each, mAP=MAP[now[0] - 1]) for name, each in found.rankings.items()}
        return replace(found, rankings=rankings)

    RunKeeper.evaluate, keeper.evaluate_split = evaluated, result  # type: ignore[method-assign]


def forked(work: Callable[..., Any], *args: Any, **options: Any) -> int:
    """Exit code of some work in a process of its own, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*args, **options)
            code = 0
        except (TrireidError, AssertionError, AttributeError, TypeError):
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_until(config: Config, name: str, number: int) -> None:
    """Train with a slow disk, and die when half of a file is written for the given time."""
    save_file, save, left = checkpoint.save_file, torch.save, [number]

    def end_or_wait(path: Path) -> None:
        time.sleep(0.05)  # longer than an epoch: the run is ahead of what is on the disk
        if path.name.startswith(f".{name}."):
            left[0] -= 1
            if left[0] == 0:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                os.kill(os.getpid(), signal.SIGKILL)

    def slow_weights(tensors: Any, path: Path, *rest: Any) -> None:
        save_file(tensors, path, *rest)
        end_or_wait(path)

    def slow_state(content: Any, path: Path) -> None:
        save(content, path)
        end_or_wait(path)

    checkpoint.save_file, state.torch.save = slow_weights, slow_state
    train(config, progress=False)


def check_left(folder: Path) -> None:
    """Whole files, no more logged epochs to repeat than lie between two states, and a best not behind the state."""
    logged = len(read_epochs(folder))
    epoch = load_state(folder / "state" / "state.pt").epoch if (folder / "state" / "state.pt").exists() else 0
    assert epoch % 3 == 0
    assert logged - epoch <= 3, (logged, epoch)
    if epoch:
        assert load_checkpoint(folder / "last.safetensors").epoch >= epoch
        assert keeper.selection_score(load_checkpoint(folder / "best.safetensors").figures) >= max(MAP[:epoch])


if __name__ == "__main__":
    main()
