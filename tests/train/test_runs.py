"""The run folder: who may write to it, atomic files, the log of the epochs."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import yaml

from trireid.config.load import override_config
from trireid.config.schema import Config
from trireid.errors import RunError
from trireid.files import replacing, write_json, write_text
from trireid.train.environment import describe_environment, git_commit
from trireid.train.run_files import CONFIG_FILE, ENVIRONMENT_FILE, EPOCHS_FILE, LAST_FILE, METRICS_FILE
from trireid.train.runs import (
    EpochLog,
    claim_run_folder,
    flatten_numbers,
    only_run,
    read_epochs,
    read_metrics,
    require_space,
    write_start,
)


def start(folder: Path, *overrides: str) -> Config:
    config = override_config(Config(output=folder), overrides)
    claim_run_folder(folder, config, resume=False)
    write_start(folder, config, {"seed": 1})
    return config


def test_a_fresh_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    claim_run_folder(tmp_path / "a" / "b", Config(), resume=False)
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize(("file", "state"), [(EPOCHS_FILE, "an unfinished run"), (METRICS_FILE, "a finished run")])
def test_an_earlier_run_is_never_overwritten(tmp_path: Path, file: str, state: str) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(RunError, match=f"{state}.*--resume"):
        claim_run_folder(tmp_path, Config(), resume=False)
    assert (tmp_path / file).read_text() == "{}"


def test_nothing_to_resume_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run to resume"):
        claim_run_folder(tmp_path, Config(), resume=True)


def test_resume_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    config = start(tmp_path)
    claim_run_folder(tmp_path, config, resume=True)
    with pytest.raises(RunError, match=r"train\.lr was 0\.00035, now 0\.5"):
        claim_run_folder(tmp_path, override_config(config, ["train.lr=0.5"]), resume=True)


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(RunError, match=f"another run is writing to {tmp_path}: .* output=")
    with only_run(tmp_path), refused, only_run(tmp_path):
        pytest.fail("two runs write to one folder")
    with only_run(tmp_path):
        assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    halves = [tmp_path / f".{LAST_FILE}.1.tmp", tmp_path / "state" / ".state.pt.22.tmp"]
    others = [tmp_path / ".report.html.3.tmp", tmp_path / "state" / "state.pt"]
    for path in (*halves, *others):
        path.touch()
    with only_run(tmp_path):
        assert not any(path.exists() for path in halves)
        assert all(path.exists() for path in others)


def test_resume_allows_settings_that_do_not_change_what_is_learnt(tmp_path: Path) -> None:
    config = start(tmp_path)
    claim_run_folder(tmp_path, override_config(config, ["data.workers=7", "data.root=/elsewhere"]), resume=True)


def test_a_folder_that_cannot_be_made_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=f"cannot write to the folder {tmp_path / 'file' / 'run'}"):
        claim_run_folder(tmp_path / "file" / "run", Config(), resume=False)


def test_a_full_disk_is_found_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))
    require_space(tmp_path, 5_000_000)
    with pytest.raises(RunError, match=rf"{tmp_path} has 5.0 MB free.*up to 6.0 MB"):
        require_space(tmp_path, 6_000_000)
    (tmp_path / LAST_FILE).write_bytes(bytes(1_000_000))  # a resumed run writes it anew in the same space
    require_space(tmp_path, 6_000_000)


def test_a_file_where_a_folder_should_be_is_said_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=f"cannot write to the folder {tmp_path / 'file'} "):
        write_text(tmp_path / "file" / "a.txt", "")


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_until_full() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=f"{tmp_path}.*No space left"):
        write_until_full()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_start_writes_a_config_that_reads_back(tmp_path: Path) -> None:
    config = start(tmp_path, "train.epochs=7", "data.image_size=[64, 32]")
    assert Config.model_validate(yaml.safe_load((tmp_path / CONFIG_FILE).read_text())) == config


def test_a_resume_adds_its_environment(tmp_path: Path) -> None:
    config = start(tmp_path)
    write_start(tmp_path, config, {"seed": 2})
    write_start(tmp_path, config, {"seed": 3})
    assert json.loads((tmp_path / ENVIRONMENT_FILE).read_text()) == {"seed": 1, "resumed": [{"seed": 2}, {"seed": 3}]}


def test_epochs_after_the_saved_state_and_half_lines_are_taken_away(tmp_path: Path) -> None:
    lines = [json.dumps({"epoch": epoch, "loss": {"total": 0.5}}) + "\n" for epoch in (1, 2, 3)]
    (tmp_path / EPOCHS_FILE).write_text("".join(lines) + '{"epoch": 4, "lo')
    assert [entry["epoch"] for entry in read_epochs(tmp_path)] == [1, 2, 3]
    log = EpochLog(tmp_path, last_epoch=2)
    log.append({"epoch": 3, "loss": {"total": 0.25}})
    log.close()
    assert (tmp_path / EPOCHS_FILE).read_text() == "".join(lines[:2]) + '{"epoch": 3, "loss": {"total": 0.25}}\n'


def test_scalars_reach_tensorboard_by_path(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EpochLog(tmp_path)
    log.append({"epoch": 5, "loss": {"total": 0.25}, "metrics": {"test": {"joint": {"mAP": 0.5}}}})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("metrics/test/joint/mAP")] == [(5, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("loss/total")] == [(5, 0.25)]


def test_flatten_numbers_takes_numbers_only() -> None:
    tree = {"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "text": "x"}
    assert dict(flatten_numbers(tree)) == {"a": 1.0, "b/c": 2.5, "b/d/e": 3.0}


def test_damaged_metrics_are_a_run_error(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) is None
    (tmp_path / METRICS_FILE).write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        read_metrics(tmp_path)


def test_environment_says_what_ran() -> None:
    import platform

    import torch

    environment = describe_environment(device=torch.device("cpu"), precision="fp32", num_processes=2, seed=5)
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["python"] == platform.python_version()
    assert (environment["precision"], environment["num_processes"], environment["seed"]) == ("fp32", 2, 5)
    json.dumps(environment)


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
