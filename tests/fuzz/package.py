"""The package as the cases call it: its command line within this process, and the tiny set and run they start from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.utils.tensorboard import SummaryWriter  # noqa: F401 - imported here, so that no child has to

import trireid.ablation
import trireid.cli.ablate
import trireid.cli.app
import trireid.cli.check_data
import trireid.cli.evaluate
import trireid.cli.importing
import trireid.cli.train
import trireid.cli.upstream_scripts
import trireid.report.compare
import trireid.report.page
import trireid.train.loop
import trireid.visualize.selections
from tiny_run import tiny_config, write_tree
from trireid.config.load import dump_config

torch.set_num_threads(1)
QUICK = ("train.epochs=1", "data.cache=memory", "train.maps_every=0", "train.trackers=[]")


def command(*arguments: object) -> None:
    """`trireid ARGUMENTS`; ends in SystemExit."""
    trireid.cli.app.app([str(argument) for argument in arguments])


def door(name: str, *arguments: object) -> None:
    """`python train_net.py ARGUMENTS` or `test_net.py`."""
    doors = {
        "train_net.py": trireid.cli.upstream_scripts.train_from_upstream,
        "test_net.py": trireid.cli.upstream_scripts.evaluate_from_upstream,
    }
    doors[name]([str(argument) for argument in arguments])


def tiny_tree(folder: Path, *, identities: int = 4) -> Path:
    """A data set of a few small triplets."""
    return write_tree(folder, identities=identities, per_camera=2)


def settings_text(root: Path, output: Path | str, overrides: Sequence[str] = ()) -> str:
    """A YAML file of the smallest training on a tree."""
    return dump_config(tiny_config(root, Path(output), *QUICK, *overrides))
