"""Broken input through the command line: one clear line and exit code 2, never a traceback, half a file or a hang."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from tiny_run import tiny_config, write_tree
from trireid.cli.app import app
from trireid.config.load import dump_config
from trireid.data import readers
from trireid.train import loop

GARBAGE = b"\xff\xd8\xff garbage"
NIR_IMAGE = "train_171/NI/000001_cam1_0_01.jpg"
ADVICE = (
    "replace", "restore", "rename", "remove", "check", "set ", "lower", "give", "free", "choose", "use ", "resume",
    "build the model",
)  # fmt: skip


@pytest.fixture(scope="module")
def good_tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("good") / "data", identities=4, per_camera=2)


@pytest.fixture
def tree(good_tree, tmp_path):
    """A copy of a good data set, to be broken."""
    return Path(shutil.copytree(good_tree, tmp_path / "data"))


@pytest.fixture(scope="module")
def finished(good_tree, tmp_path_factory):
    """A finished run, to be read and copied only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    loop.train(tiny_config(good_tree, folder, "train.epochs=1"), progress=False)
    return folder


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(root, *settings, output=None):
    """`trireid train` of the smallest model on a tree; the run folder lies beside it."""
    output = root.parent / "run" if output is None else output
    path = root.parent / "run.yaml"
    path.write_text(dump_config(tiny_config(root, output, "train.epochs=1")))
    return call("train", "--config", path, *settings)


def refused(result, *words):
    """The error line of a command that ended as a user's mistake should."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.rstrip().endswith(lines[0]), "the error is the last line"
    for word in words:
        assert str(word) in lines[0], lines[0]
    assert any(word in lines[0] for word in ADVICE), f"says nothing of what to do: {lines[0]}"
    return lines[0]


def assert_nothing_half_written(folder):
    """No temporary file, no checkpoint and no final metrics of a run that failed."""
    left = [path.name for path in folder.rglob("*") if path.is_file()]
    assert not [name for name in left if name.startswith(".") or name.endswith((".tmp", ".part"))], left
    assert not {"metrics.json", "last.safetensors", "best.safetensors", "state.pt"} & set(left), left


# -- images ------------------------------------------------------------------------------------------------------------


def corrupt(path):
    path.write_bytes(GARBAGE)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [corrupt, *(pytest.param(each, marks=pytest.mark.slow) for each in (truncate, empty))]
)
def test_training_names_the_damaged_image(tree, damage):
    damage(tree / NIR_IMAGE)
    refused(train(tree), tree / NIR_IMAGE, "--skip-bad")
    assert_nothing_half_written(tree.parent / "run")


@pytest.mark.parametrize("damage", [corrupt, truncate, empty])
def test_check_data_names_the_damaged_image(tree, damage):
    damage(tree / NIR_IMAGE)
    result = call("check-data", "--format", "rgbnt201", "--root", tree)
    assert result.exit_code == 2
    assert f"{tree / NIR_IMAGE}: " in result.stdout
    assert "1 fault: 1 unreadable_image" in result.stdout


@pytest.mark.slow
def test_a_damaged_image_of_the_test_split_is_named_too(tree):
    image = tree / "test/TI/000101_cam2_0_00.jpg"
    truncate(image)
    refused(train(tree), image)
    assert_nothing_half_written(tree.parent / "run")


def test_skip_bad_leaves_the_triplet_out_and_lists_it(tree):
    truncate(tree / NIR_IMAGE)
    result = train(tree, "--skip-bad")
    assert result.exit_code == 0, result.output
    assert f"left out: {tree / NIR_IMAGE}" in result.stderr
    metrics = json.loads((tree.parent / "run" / "metrics.json").read_text())
    assert (metrics["num_left_out"], metrics["num_train"]) == (1, 15)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_command_ends_soon_after_a_damaged_image_whatever_the_workers(tree, workers):
    # A process of its own: the workers must not keep it from ending (torch waits 5 s for each that does not hear).
    corrupt(tree / NIR_IMAGE)
    path = tree.parent / "run.yaml"
    path.write_text(dump_config(tiny_config(tree, tree.parent / "run", f"data.workers={workers}")))
    command = [sys.executable, "-m", "trireid", "train", "--config", str(path)]
    began = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    seconds = time.monotonic() - began
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith(f"error: {tree / NIR_IMAGE}: ")
    assert seconds < 60, f"took {seconds:.0f} s"


# -- folders and names -------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "x").mkdir()
    refused(train(tmp_path / "x" / "data"), tmp_path / "x" / "data", "no such folder", "data.root")


def test_an_empty_data_folder(tree):
    shutil.rmtree(tree)
    tree.mkdir()
    refused(train(tree), tree / "train", "split folder is missing")
    assert call("check-data", "--format", "rgbnt201", "--root", tree).exit_code == 2


@pytest.mark.parametrize("skip", [(), ("--skip-bad",)])
def test_an_empty_modality_folder(tree, skip):
    for image in (tree / "train_171/NI").iterdir():
        image.unlink()
    refused(train(tree, *skip), tree / "train_171/NI", "no image in the folder")


def test_a_missing_modality_folder(tree):
    shutil.rmtree(tree / "test/TI")
    refused(train(tree), tree / "test/TI", "the folder is missing")


def test_missing_modality_files_are_an_error_or_left_out(tree):
    (tree / NIR_IMAGE).unlink()
    refused(train(tree), tree / NIR_IMAGE, "missing", "check-data", "--skip-bad")
    result = train(tree, "--skip-bad", "data.batch_size=4")
    assert result.exit_code == 0, result.output
    assert f"left out: {tree / NIR_IMAGE}" in result.stderr


def test_wrong_names_say_what_a_good_one_looks_like(tree):
    for image in tree.glob("train_171/*/000001_cam1_0_01.jpg"):
        image.rename(image.with_name("person1.jpg"))
    refused(train(tree), "person1.jpg", "must be like 000028_cam1_0_02.jpg")


def test_swapped_splits_are_known_by_the_published_counts(tree, monkeypatch):
    published = {"train": (16, 4), "query": (8, 2), "gallery": (8, 2)}
    swapped = dataclasses.replace(readers.FORMATS["rgbnt201"], published=published)
    monkeypatch.setitem(readers.FORMATS, "rgbnt201", swapped)
    for image in tree.glob("test/*/00010[23]*"):
        image.unlink()
    assert train(tree).exit_code == 0
    shutil.rmtree(tree.parent / "run")
    (tree / "train_171").rename(tree / "other")
    (tree / "test").rename(tree / "train_171")
    (tree / "other").rename(tree / "test")
    refused(train(tree), "published counts are the other way round", "swapped")
    refused(train(tree, "--skip-bad"), "swapped")


def test_one_folder_as_both_splits(tree):
    shutil.rmtree(tree / "test")
    shutil.copytree(tree / "train_171", tree / "test")
    refused(train(tree), "training and test identities must differ", "swapped or copied")


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [("data.batchsize=4", "data.batch_size"), ("train.epoch=3", "train.epochs"), ("modle.head=none", "model.head")],
)
def test_a_typo_names_the_nearest_setting(tree, setting, nearest):
    result = train(tree, setting)
    assert result.exit_code == 2
    assert f"unknown setting {setting.partition('=')[0]}; the nearest is {nearest}" in result.stderr


def test_a_typo_in_the_file_names_file_and_nearest_setting(tree):
    path = tree.parent / "typo.yaml"
    path.write_text("train:\n  learning_rate: 0.1\n  warmup_epoch: 3\n")
    result = call("train", "--config", path)
    assert result.exit_code == 2
    assert f"{path}: unknown setting train.warmup_epoch; the nearest is train.warmup_epochs" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_format_lists_the_known_ones(tree):
    for result in (train(tree, "data.format=market1501"), call("check-data", "--format", "market", "--root", tree)):
        refused(result, "market", "rgbnt201", "wmveid863", "csv")


def test_another_format_than_the_tree_has(tree):
    refused(train(tree, "data.format=rgbnt100"), "split folder is missing", "data.format")
    refused(train(tree, "data.format=csv"), "CSV", "data.root")


def test_a_batch_larger_than_the_data(tree):
    refused(train(tree, "data.batch_size=64"), "needs 32 identities in a batch, but the training set has only 4")
    refused(train(tree, "data.batch_size=64", "data.sampler=random"), "64", "16")


def test_one_identity_cannot_be_told_apart(tree):
    for image in tree.glob("train_171/*/00000[123]*"):
        image.unlink()
    refused(train(tree), tree, "1 identity", "at least 2")
    refused(train(tree, "data.sampler=random", "data.batch_size=4"), tree, "1 identity", "at least 2")


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["data.image_size=[64, 32]", "model.head=hdm", "model.backbone.depth=2"])
def test_a_checkpoint_for_another_model_is_not_tested(finished, setting):
    refused(call("test", finished, setting), "does not fit the model", "image size 32 x 16", "4 identities")


def test_a_checkpoint_for_another_class_count_is_not_used(finished, tmp_path):
    with safetensors.safe_open(finished / "last.safetensors", framework="pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    labels = json.loads(metadata["label_map"])
    labels["identities"].append("000009")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(state, other, metadata=metadata | {"label_map": json.dumps(labels)})
    refused(call("test", other), "does not fit", "5 identities")


def test_a_run_is_not_resumed_with_another_image_size_or_other_identities(good_tree, finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "metrics.json").unlink()
    resume = ("train", "--config", run / "config.yaml", f"output={run}", "--resume")
    refused(call(*resume, "data.image_size=[64, 32]"), "data.image_size was [32, 16], now [64, 32]")
    fewer = write_tree(tmp_path / "fewer", identities=5)
    refused(call(*resume, f"data.root={fewer}"), "training identities or cameras are not those")


@pytest.mark.parametrize(
    "file", ["config.yaml", "environment.json", "metrics.jsonl", "state/state.pt", "best.safetensors"]
)
def test_a_damaged_run_is_not_resumed(finished, tmp_path, file):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "metrics.json").unlink()
    settings = tmp_path / "run.yaml"
    settings.write_text((run / "config.yaml").read_text())
    (run / file).write_text("garbage\n")
    result = call("train", "--config", settings, f"output={run}", "--resume")
    assert result.exit_code == 2, result.output
    assert f"error: {run / file}" in result.stderr
    assert not (run / "metrics.json").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 64, "half"])
def test_a_damaged_checkpoint(finished, tmp_path, content):
    path = tmp_path / "broken.safetensors"
    whole = (finished / "last.safetensors").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    refused(call("test", path), path, "truncated or another format")


def test_weights_of_another_program(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    refused(call("test", path), "not written by trireid", "model.backbone.pretrained")


def test_a_pickle_is_not_opened(tmp_path):
    path = tmp_path / "DeMobest.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    refused(call("test", path), path, "pickle")


def test_start_weights_that_are_not_there_or_no_weights(tree, tmp_path):
    refused(train(tree, "model.backbone.pretrained=none/such.safetensors"), "none/such.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    result = train(tree, f"model.backbone.pretrained={tmp_path / 'text.safetensors'}")
    assert result.exit_code == 2
    assert f"weight file {tmp_path / 'text.safetensors'} cannot be read" in result.stderr


# -- the run folder ----------------------------------------------------------------------------------------------------


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
@pytest.mark.parametrize(
    "writer",
    [
        "trireid.train.runs.write_text",
        "trireid.train.runs.write_json",
        "trireid.train.checkpoint.save_file",
        "torch.save",
        "trireid.evaluation.feature_files.save_file",
        "trireid.train.keeper.write_metrics",
        "torch.utils.tensorboard.SummaryWriter.add_scalar",
        "os.fsync",
    ],
)
def test_a_full_disk_in_the_middle_of_a_run(tree, monkeypatch, writer):
    monkeypatch.setattr(writer, no_space)
    refused(train(tree), "No space left on device", "free some space")
    run = tree.parent / "run"
    assert not (run / "metrics.json").exists()
    assert not [path for path in run.rglob("*") if path.name.startswith(".") or path.suffix in (".tmp", ".part")]


def test_a_full_disk_as_the_weight_writers_say_it(tree, monkeypatch):
    def full(*_, **__):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("trireid.evaluation.feature_files.save_file", full)
    refused(train(tree), "No space left on device", "free some space")
    left = {path.name for path in (tree.parent / "run").rglob("*")}
    assert "metrics.json" not in left
    assert not [name for name in left if name.startswith(".") or name.endswith((".tmp", ".part"))]


def test_a_run_folder_that_cannot_be_made_or_written(tree, monkeypatch):
    (tree.parent / "file").write_text("")
    refused(train(tree, output=tree.parent / "file" / "run"), "file/run", "Not a directory", "choose another folder")
    refused(train(tree, output=tree.parent / "file"), tree.parent / "file", "choose another folder")

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    # Permissions do not hold for the superuser, whom tests often run as: the system's answer is given instead.
    monkeypatch.setattr("trireid.train.runs.TemporaryFile", read_only)
    refused(train(tree), "Read-only file system", "choose another folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder(tree):
    closed = tree.parent / "closed"
    closed.mkdir(mode=0o555)
    refused(train(tree, output=closed / "run"), closed / "run", "Permission denied", "choose another folder")


def test_a_run_is_not_written_over_and_nothing_is_resumed_from_nothing(tree, finished):
    refused(train(tree, output=finished), "already holds a finished run", "choose another folder")
    refused(train(tree, "--resume"), "holds no run to resume")


def test_a_full_disk_leaves_no_half_of_a_synthetic_set(tmp_path, monkeypatch):
    monkeypatch.setattr("trireid.data.synthetic.writer.write_file", no_space)
    refused(call("synth", "--out", tmp_path / "set", "--ids", 2, "--size", "32x16"), "No space left", "free space")
    assert list(tmp_path.iterdir()) == []
