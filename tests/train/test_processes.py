"""A run in two gloo processes on the CPU is the run of one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from processes import run_processes
from tiny_run import tiny_config, write_tree
from trireid.config.load import dump_config, override_config
from trireid.config.schema import Config
from trireid.train.checkpoint import load_checkpoint
from trireid.train.loop import train
from trireid.train.run_files import BEST_FILE
from trireid.train.runs import read_epochs, read_metrics

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

SCRIPT = """
import sys
from trireid.config.load import load_config
from trireid.models.hdm import HDM
from trireid.train.keeper import RunKeeper
from trireid.train.loop import train

HDM.__init__.__kwdefaults__["dropout"] = 0.0  # what is drawn differs between the processes
save = RunKeeper.save

def save_and_stop(self, epoch):
    save(self, epoch)
    if epoch == 1:
        sys.exit(0)

if "stop" in sys.argv:
    RunKeeper.save = save_and_stop
train(load_config(sys.argv[1]), progress=False, resume="resume" in sys.argv, measure_untrained=True)
"""

EVALUATION = """
import sys
from pathlib import Path
from trireid.config.load import load_config
from trireid.files import write_json
from trireid.train.testing import evaluate_checkpoint

tables = {"missing_cases": True, "any_to_any": True}
figures = evaluate_checkpoint(Path(sys.argv[2]), config=load_config(sys.argv[1]), progress=False, **tables)
if figures:
    write_json(Path(sys.argv[3]), figures)
"""

TOLERANCE = 1e-5
"""Of losses and weights after 3 epochs of SGD in fp32, absolute: the processes add up in another order.

Adam would hide a gradient that is twice too large, and moves the bias of the keys, whose gradient is rounding alone.
"""

SGD = ("train.optimizer=sgd", "train.lr=0.01", "train.backbone_lr=0.01", "train.epochs=3")
CUT = "[{after_block: 1, keep_ratio: 0.5, guidance: learned}]"
MODELS = {
    "none": ["model.head=none"],
    "sdtps": ["model.head=sdtps", "model.sdtps.noise=none"],
    "hdm_atmoe": ["model.head=hdm_atmoe"],
    "two modalities, a classifier each": [
        "model.head=none",
        "model.global_classifier=separate",
        "data.modalities=[rgb, tir]",
    ],
    "modality dropout, a classifier each": [
        "model.head=hdm",
        "model.global_classifier=separate",
        "train.modality_dropout=0.5",
    ],
    "learned cut": ["model.head=none", "model.backbone.depth=2", f"model.slimming={CUT}", "train.clip_grad_norm=1"],
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), identities=8, per_camera=4)


def run(config: Config, folder: Path, *words: str, number: int) -> None:
    """Train in so many processes."""
    settings, script = folder / f"{config.output.name}.yaml", folder / "script.py"
    settings.write_text(dump_config(config))
    script.write_text(SCRIPT)
    done = run_processes(script, str(settings), *words, number=number)
    assert done.returncode == 0, done.stderr[-3000:]


def difference(one: Config, two: Config) -> float:
    """The largest one between the weights (and running statistics) of two runs."""
    first, second = (load_checkpoint(config.output).model_state for config in (one, two))
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.parametrize("model", MODELS)
def test_two_processes_learn_what_one_does(tree: Path, tmp_path: Path, model: str) -> None:
    one, two = (tiny_config(tree, tmp_path / name, *SGD, *MODELS[model]) for name in ("one", "two"))
    run(one, tmp_path, number=1)
    run(two, tmp_path, number=2)
    entries, others = read_epochs(one.output), read_epochs(two.output)
    # 8 identities x 4 groups of 2 images make 8 batches of 8.
    assert [(entry["num_steps"], entry["num_triplets"]) for entry in others] == [(8, 64)] * 3
    for entry, other in zip(entries, others, strict=True):
        assert other["loss"] == pytest.approx(entry["loss"], rel=0, abs=TOLERANCE)
    assert entries[-1]["loss"]["total"] < entries[0]["loss"]["total"] - 100 * TOLERANCE
    assert difference(one, two) < TOLERANCE
    alone, shared = read_metrics(one.output), read_metrics(two.output)
    assert alone is not None
    assert shared is not None
    assert shared["untrained"] == alone["untrained"]  # of equal weights, to the last digit
    assert shared["best"].keys() == alone["best"].keys()
    assert json.loads((two.output / "environment.json").read_text())["num_processes"] == 2
    assert len(list((two.output / "tensorboard").iterdir())) == 1  # one process alone writes


def test_one_item_a_process_is_normalised_with_those_of_the_others(tree: Path, tmp_path: Path) -> None:
    # Two items differ by any amount and are then one standard deviation apart: weights that move would tell too much.
    still = ("train.lr=1e-9", "train.backbone_lr=1e-9", "train.epochs=1")
    settings = (*SGD, *still, "data.batch_size=2", "data.sampler=random", "model.head=hdm_atmoe")
    one, two = (tiny_config(tree, tmp_path / name, *settings) for name in ("one", "two"))
    run(one, tmp_path, number=1)
    run(two, tmp_path, number=2)
    assert difference(one, two) < TOLERANCE  # running statistics among them
    assert read_epochs(two.output)[0]["loss"] == pytest.approx(read_epochs(one.output)[0]["loss"], rel=0, abs=1e-4)


@pytest.mark.parametrize("batch_size", [256, 24, 7])  # one batch for two processes, three, and a rest of 1
def test_a_shared_evaluation_gives_the_figures_of_one_process(tree: Path, tmp_path: Path, batch_size: int) -> None:
    config = tiny_config(tree, tmp_path / "run", "train.epochs=1", "evaluate.rerank=true")
    train(config, progress=False)
    config = override_config(config, [f"evaluate.batch_size={batch_size}"])
    settings, script = tmp_path / "settings.yaml", tmp_path / "script.py"
    settings.write_text(dump_config(config))
    script.write_text(EVALUATION)
    figures = []
    for number in (1, 2):
        out = tmp_path / f"{number}.json"
        done = run_processes(script, str(settings), str(config.output), str(out), number=number)
        assert done.returncode == 0, done.stderr[-3000:]
        figures.append(json.loads(out.read_text()))
    assert figures[0]["num_gallery"] == 64
    assert set(figures[0]) >= {"missing", "any_to_any"}
    assert figures[0] == figures[1]  # the batches are the same, and so is every digit


def test_best_on_held_out_identities_and_a_resumed_run(tree: Path, tmp_path: Path) -> None:
    settings = [*SGD, "data.val_ids=2", "data.batch_size=4", "train.evaluate_every=1", "evaluate.batch_size=5"]
    whole, parts = (tiny_config(tree, tmp_path / name, *settings) for name in ("whole", "parts"))
    run(whole, tmp_path, number=2)
    run(parts, tmp_path, "stop", number=2)
    assert [entry["epoch"] for entry in read_epochs(parts.output)] == [1]
    assert read_metrics(parts.output) is None
    run(parts, tmp_path, "resume", number=2)
    assert [entry["loss"] for entry in read_epochs(parts.output)] == [
        entry["loss"] for entry in read_epochs(whole.output)
    ]
    assert difference(whole, parts) == 0
    first, second = read_metrics(whole.output), read_metrics(parts.output)
    assert first is not None
    assert second is not None
    assert first["best"] == second["best"]
    assert first["best"]["chosen_on"] == "validation"
    assert first["best"]["epoch"] == load_checkpoint(whole.output / BEST_FILE).epoch
    assert set(first["best"]["feature"]["joint"]) == set(first["best"]["validation"]["joint"])


def test_a_batch_that_cannot_be_shared_is_refused(tree: Path, tmp_path: Path) -> None:
    config = tiny_config(tree, tmp_path / "run", "data.batch_size=5", "data.sampler=random")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    done = run_processes(tmp_path / "script.py", str(tmp_path / "run.yaml"), number=2)
    assert done.returncode != 0
    assert "data.batch_size 5 is not a multiple of the 2 processes" in done.stderr
    assert not config.output.exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("train.seed=2", "train.seed is 1111 in process 0 and 2 in process 1; start all of them with the same command"),
        ("train.epochs=3", "train.epochs is 2 in process 0 and 3 in process 1"),
        ("data.root={fewer}", "the training set is '32 triplets"),
        ("--resume", "--resume is False in process 0 and True in process 1"),
    ],
)
def test_processes_with_other_settings_or_data_are_refused(tree: Path, tmp_path: Path, other: str, said: str) -> None:
    fewer = write_tree(tmp_path / "fewer", identities=6)
    config = tiny_config(write_tree(tmp_path / "more", identities=8), tmp_path / "run")
    (tmp_path / "run.yaml").write_text(dump_config(config))
    only_there = f"[{other.format(fewer=fewer)!r}] if os.environ['RANK'] == '1' else []"
    (tmp_path / "command.py").write_text(
        f"import os, sys; from trireid.cli import main; sys.argv += {only_there}; main()"
    )
    done = run_processes(tmp_path / "command.py", "train", "--config", str(tmp_path / "run.yaml"), number=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0
    assert lines, done.stderr[-3000:]
    assert all(said in line for line in lines), lines
    assert "]: Traceback" not in done.stderr
    assert not (config.output / "metrics.jsonl").exists()


def test_one_process_that_fails_is_the_one_that_is_heard(tree: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "tree"
    shutil.copytree(tree, damaged)
    image = next(path for path in sorted(damaged.rglob("*.*")) if path.parent.name == "NI" and "train" in str(path))
    image.write_bytes(image.read_bytes()[:40])  # a batch of one process has it, the other waits for that one
    config = tiny_config(damaged, tmp_path / "run", "data.cache=none", "data.workers=0")
    (tmp_path / "run.yaml").write_text(dump_config(config))
    (tmp_path / "command.py").write_text("from trireid.cli import main; main()")
    done = run_processes(tmp_path / "command.py", "train", "--config", str(tmp_path / "run.yaml"), number=2)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0
    assert any(image.name in line for line in said), done.stderr[-3000:]
    assert all(image.name in line or "because another one did" in line for line in said)
    assert "]: Traceback" not in done.stderr  # of a process; the launcher has one of its own
