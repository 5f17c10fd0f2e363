"""Grids: how cells are named, planned, resumed, and what the table says."""

import json
import multiprocessing.spawn
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tiny_run import tiny_config, write_tree
from trireid import ablation
from trireid.ablation import Cell, Job, forking, running
from trireid.ablation.forking import PRELOADED, ForkedRun
from trireid.cli.app import app
from trireid.config.load import dump_config, load_config
from trireid.errors import ConfigError, RunError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_cells_of_every_experiment_are_valid(path):
    of_set = {
        "landsat": "landsat_places/sdtps.yaml",
        "tno_recipe": "tno_scenes/start.yaml",
        "tno": "tno_scenes/recipe.yaml",
    }
    found = [config for name, config in of_set.items() if name in path.stem]
    config = ROOT / "configs" / "trireid" / (found[0] if found else "synthetic/vit_small.yaml")
    cells = ablation.file_cells(path)
    assert len(ablation.plan(config, cells, overrides=[], seeds=1, out=Path("runs/never"))) == len(cells) > 1


def test_vary_makes_every_combination_and_does_not_split_lists():
    cells = ablation.vary_cells(["model.head=none,sdtps", "data.modalities=[rgb,nir],[tir]"])
    assert [cell.name for cell in cells] == [
        "head=none, modalities=[rgb,nir]",
        "head=none, modalities=[tir]",
        "head=sdtps, modalities=[rgb,nir]",
        "head=sdtps, modalities=[tir]",
    ]
    assert cells[2].overrides == ("model.head=sdtps", "data.modalities=[rgb,nir]")


@pytest.mark.parametrize("entry", ["model.head", "=none", "model.head=", "model.head=none,,sdtps"])
def test_a_wrong_axis_is_named(entry):
    with pytest.raises(ConfigError, match="is not of the form key=v1,v2"):
        ablation.vary_cells([entry])


def test_cells_come_from_a_file(tmp_path):
    (tmp_path / "cells.yaml").write_text("a: [model.head=none]\nb: [model.head=sdtps, train.epochs=3]\n")
    cells = ablation.file_cells(tmp_path / "cells.yaml")
    assert cells[1] == Cell("b", ("model.head=sdtps", "train.epochs=3"))
    (tmp_path / "cells.yaml").write_text("a: model.head=none\n")
    with pytest.raises(ConfigError, match="a must be a list"):
        ablation.file_cells(tmp_path / "cells.yaml")


def test_a_wrong_setting_in_any_cell_stops_before_the_first_run(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    with pytest.raises(ConfigError, match="model.hed"):
        ablation.plan(tmp_path / "c.yaml", ablation.vary_cells(["model.hed=none"]), overrides=[], seeds=1, out=tmp_path)
    twice = [Cell("a b", ()), Cell("a,b", ())]
    with pytest.raises(ConfigError, match="same name, a_b"):
        ablation.plan(tmp_path / "c.yaml", twice, overrides=[], seeds=1, out=tmp_path)


REFUSED = [
    (["train.seed=5,6"], [], "seed=5: the ablation sets train.seed itself"),
    (["train.epochs=3,4"], ["train.seed=9"], "the ablation sets train.seed itself"),
    (["output=elsewhere"], [], "the ablation sets output itself"),
    (["train.lr=0.1,1e-1"], [], "lr=0.1 and lr=1e-1 have the same settings"),
]


@pytest.mark.parametrize(("vary", "overrides", "message"), REFUSED, ids=lambda value: str(value)[:20])
def test_a_grid_that_would_not_be_what_it_says_is_refused(tmp_path, vary, overrides, message):
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    with pytest.raises(ConfigError, match=message):
        ablation.plan(
            tmp_path / "c.yaml", ablation.vary_cells(vary), overrides=overrides, seeds=2, out=tmp_path / "grid"
        )


def test_every_cell_has_a_folder_of_its_own_below_that_of_the_grid(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    names = ["..", ".", ".hidden", "大", "小", "../up", "/etc", "", "a b", "é", "table.md", "plain-name_1.5"]
    cells = [Cell(name, (f"train.epochs={epochs}",)) for epochs, name in enumerate(names, start=2)]
    jobs = ablation.plan(tmp_path / "c.yaml", cells, overrides=[], seeds=1, out=tmp_path / "grid")
    folders = [job.folder.parent for job in jobs]
    assert len(set(folders)) == len(names)
    assert {folder.parent for folder in folders} == {tmp_path / "grid"}
    assert not any(folder.name.startswith(".") for folder in folders)
    assert not {"table.md", ".."} & {folder.name for folder in folders}
    assert (folders[names.index("a b")].name, folders[-1].name) == ("a_b", "plain-name_1.5")
    assert "大" in folders[names.index("大")].name


def finished(folder, value, *, chosen_on="test"):
    folder.mkdir(parents=True)
    figures = {"mAP": value, "mINP": value / 2, "rank1": value}
    best = {"epoch": 1, "chosen_on": chosen_on, "feature": {"joint": {**figures, "mAP": 0.99}}}
    (folder / "metrics.json").write_text(json.dumps({"feature": {"joint": figures}, "best": best}))


def test_the_table_gives_mean_and_spread_over_seeds(tmp_path):
    cell = Cell("sdtps", ("model.head=sdtps",))
    values = [0.5, 0.6, 0.8]
    jobs = [Job(cell, seed, tmp_path / f"seed{seed}") for seed in (1, 2, 3, 4)]
    for job, value in zip(jobs, values, strict=False):
        finished(job.folder, value)
    table = ablation.collect(jobs, costs={"sdtps": {"GMAC": 1.25}})
    assert table["missing"] == 1
    assert table["cells"]["sdtps"]["seeds"] == [1, 2, 3]
    text = ablation.markdown(table)
    percent = [100 * value for value in values]
    assert f"| {mean(percent):.1f} ± {stdev(percent):.1f} |" in text
    assert "1.25" in text
    assert "best" not in text  # chosen on the test split: not reported
    files = ablation.write_table(table, tmp_path)
    assert json.loads(files[1].read_text())["cells"]["sdtps"]["last"]["joint"]["mAP"] == values


def test_best_is_reported_where_a_validation_split_chose_it(tmp_path):
    job = Job(Cell("a", ()), 1, tmp_path / "seed1")
    finished(job.folder, 0.5, chosen_on="validation")
    assert "| a | 1 | best | joint | 99.0 |" in ablation.markdown(ablation.collect([job]))


def test_nothing_finished_is_an_error(tmp_path):
    with pytest.raises(RunError, match="no run of the ablation has finished"):
        ablation.markdown(ablation.collect([Job(Cell("a", ()), 1, tmp_path)]))


def test_damaged_figures_of_a_finished_cell_are_one_line_before_anything_runs(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    finished(tmp_path / "grid/a/seed1", 0.5)
    (tmp_path / "grid/a/seed1/metrics.json").write_text('{"feature": {"joint": {"mAP": "x"}}}')
    with pytest.raises(RunError, match=r"feature.joint.mAP: .* delete it and resume"):
        ablation.plan(tmp_path / "c.yaml", [Cell("a", ())], overrides=[], seeds=1, out=tmp_path / "grid")


def test_a_folder_holds_one_ablation_at_a_time(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    arguments = ["ablate", "--config", str(tmp_path / "c.yaml"), "--vary", "train.lr=0.1,0.2"]
    with ablation.only_ablation(tmp_path / "grid"):
        result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "grid")])
    assert (result.exit_code, "another ablation is running" in result.stderr) == (2, True), result.output


@pytest.mark.slow
def test_a_failure_is_told_by_what_its_own_process_said(tmp_path):
    job = Job(Cell("a", ("train.epochs=x",)), 1, tmp_path / "a/seed1")
    job.folder.parent.mkdir()
    job.folder.with_suffix(".log").write_text("next: trireid report, of an earlier process\n")
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    assert "train.epochs" in ablation.run_jobs([job], config_path=tmp_path / "c.yaml", overrides=[])[0][1]
    assert running._last_line(running._Running(job, 0, job.folder.with_suffix(".log").stat().st_size)) == ""


@pytest.mark.slow
def test_finished_runs_are_not_started_again_and_failures_say_why(tmp_path):
    done, broken = (Job(Cell(name, ("train.epochs=x",)), 1, tmp_path / name / "seed1") for name in ("done", "broken"))
    finished(done.folder, 0.5)
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    seen = []
    failed = ablation.run_jobs(
        [done, broken], config_path=tmp_path / "c.yaml", overrides=[], progress=lambda n, of: seen.append((n, of))
    )
    assert [job.cell.name for job, _ in failed] == ["broken"]
    assert "train.epochs" in failed[0][1]
    assert seen[-1] == (2, 2)
    assert not (done.folder.parent / "seed1.log").exists()


def test_runs_end_with_an_ablation_that_is_told_to_stop(tmp_path, monkeypatch):
    started = []

    def start(*_args, **_options):
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5)"]))
        return started[-1]

    monkeypatch.setattr(running, "_start", start)
    (tmp_path / "seed1.log").write_text("")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as stopped:
            ablation.run_jobs(
                [Job(Cell("a", ()), 1, tmp_path / "seed1")],
                config_path=tmp_path / "c.yaml",
                overrides=[],
                progress=lambda *_: signal.raise_signal(signal.SIGTERM),
            )
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 143
    assert started[0].returncode == -signal.SIGTERM


@pytest.mark.slow
def test_a_grid_runs_through_the_command_line_and_is_resumed(tmp_path):
    tree = write_tree(tmp_path / "data")
    (tmp_path / "run.yaml").write_text(dump_config(tiny_config(tree, tmp_path / "unused", "train.epochs=1")))
    arguments = ["ablate", "--config", str(tmp_path / "run.yaml"), "--vary", "model.head=none,sdtps", "--seeds", "2"]
    arguments += ["--parallel", "2", "--out", str(tmp_path / "grid")]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    table = json.loads((tmp_path / "grid/table.json").read_text())
    assert table["missing"] == 0
    assert {name: row["seeds"] for name, row in table["cells"].items()} == {"head=none": [1, 2], "head=sdtps": [1, 2]}
    assert table["cells"]["head=sdtps"]["cost"]["GMAC"] > table["cells"]["head=none"]["cost"]["GMAC"] > 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("grid/*/seed*/metrics.json")}
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert "| head=none | 2 | last | global |" in (tmp_path / "grid/table.md").read_text()


def test_naming_cells_twice_or_not_at_all_is_an_error(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    arguments = ["ablate", "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "grid")]
    for extra in ([], ["--vary", "train.epochs=1", "--cells", str(tmp_path / "c.yaml")]):
        result = CliRunner().invoke(app, arguments + extra)
        assert result.exit_code == 2
        assert "give either --vary" in result.stderr


def test_lists_of_tables_are_one_value():
    cells = ablation.vary_cells(
        ["model.slimming=[],[{after_block: 3, keep_ratio: 0.7},{after_block: 6, keep_ratio: 0.6}]"]
    )
    assert len(cells) == 2
    assert cells[1].overrides[0].endswith("{after_block: 6, keep_ratio: 0.6}]")


def test_a_finished_run_of_other_settings_is_not_taken(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {epochs: 12}\n")
    cells, options = [Cell("a", ())], {"overrides": [], "seeds": 1, "out": tmp_path / "grid"}
    (job,) = ablation.plan(tmp_path / "c.yaml", cells, **options)
    finished(job.folder, 0.5)
    (job.folder / "config.yaml").write_text(
        dump_config(load_config(tmp_path / "c.yaml", ablation.job_settings(job, [])))
    )
    assert ablation.plan(tmp_path / "c.yaml", cells, **options) == [job]
    (tmp_path / "c.yaml").write_text("train: {epochs: 13}\n")
    with pytest.raises(ConfigError, match="was made with other settings"):
        ablation.plan(tmp_path / "c.yaml", cells, **options)


def test_runs_at_a_time_are_spread_over_the_devices(tmp_path, monkeypatch):
    class Ended:
        returncode = 0

        def __init__(self, arguments, *, log, environment):
            started.append(environment["CUDA_VISIBLE_DEVICES"])

        def poll(self):
            return 0

    started = []
    monkeypatch.setattr(running, "ForkedRun", Ended)
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    jobs = [Job(Cell("a", ()), seed, tmp_path / f"seed{seed}") for seed in range(4)]
    options = {"config_path": tmp_path / "c.yaml", "overrides": []}
    assert ablation.run_jobs(jobs, parallel=4, devices=["0", "5"], **options) == []
    assert started == ["0", "5", "0", "5"]


def test_a_run_does_not_start_again_the_program_that_starts_it(tmp_path, monkeypatch):
    """A script without a guard of `__main__` would start its runs in each of them. A missing log is no error."""

    class Process:
        exitcode = 1

        def __init__(self, **_):
            pass

        def start(self):
            prepared.append(multiprocessing.spawn.get_preparation_data("run"))

        terminate = join = start

    prepared, program = [], sys.modules["__main__"]
    monkeypatch.setattr(forking, "_context", lambda: SimpleNamespace(Process=Process))
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    jobs = [Job(Cell("a", ()), seed, tmp_path / f"seed{seed}") for seed in range(2)]
    failed = ablation.run_jobs(jobs, config_path=tmp_path / "c.yaml", overrides=[])
    assert [line for _, line in failed] == ["exit code 1", "exit code 1"]
    assert not [name for data in prepared for name in data if name.startswith("init_main")]
    assert sys.modules["__main__"] is program


@pytest.mark.slow
def test_a_fork_of_the_loaded_server_runs_a_command_in_its_own_environment(tmp_path):
    """Its log, environment, exit code and threads are its own; the server has not touched CUDA."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    runs = [
        ForkedRun(arguments, log=tmp_path / f"{name}.log", environment=environment)
        for name, arguments in {
            "version": ["--version", "--verbose"],
            "wrong": ["train", "--config", "none.yaml"],
        }.items()
    ]
    assert [run.wait() for run in runs] == [0, 2]
    assert "trireid" in (tmp_path / "version.log").read_text()
    assert (tmp_path / "wrong.log").read_text().startswith("error: ")
    assert forking._NVML_CHECK not in os.environ
    script = f"import torch\nfor name in {PRELOADED!r}: __import__(name)\nprint(torch.cuda.is_initialized())"
    assert "False" in subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    stopped = ForkedRun(["demo", "--out", str(tmp_path / "demo")], log=tmp_path / "demo.log", environment=environment)
    threading.Timer(0.3, stopped.terminate).start()
    assert stopped.wait() == -signal.SIGTERM


def test_visible_devices_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert ablation.visible_devices() == ["3", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ablation.visible_devices() == []


def test_costs_are_of_the_cells_that_have_a_row(tmp_path, monkeypatch):
    """A cell that cannot be built fails alone, and takes no other cell's costs with it."""
    impossible = "model.slimming=[{after_block: 99, keep_ratio: 0.5}]"
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    (tmp_path / "cells.yaml").write_text(json.dumps({"good": [], "bad": [impossible]}))
    cells = ablation.file_cells(tmp_path / "cells.yaml")
    good, bad = ablation.plan(tmp_path / "c.yaml", cells, overrides=[], seeds=1, out=tmp_path / "grid")
    finished(good.folder, 0.5)
    (good.folder / "config.yaml").write_text(
        dump_config(load_config(tmp_path / "c.yaml", ablation.job_settings(good, [])))
    )
    asked = []

    def measure(configs, **_options):
        asked.extend(configs)
        return [{"name": name, "gmac": 1.5, "throughput": 20.0} for name in configs]

    monkeypatch.setattr("trireid.ablation.run_jobs", lambda *_, **__: [(bad, "it cannot be built")])
    monkeypatch.setattr("trireid.train.preflight.check_runs", lambda _configs: None)  # as where it fails later
    monkeypatch.setattr("trireid.cli.bench.measure", measure)
    arguments = ["ablate", "--config", str(tmp_path / "c.yaml"), "--cells", str(tmp_path / "cells.yaml")]
    result = CliRunner().invoke(app, [*arguments, "--seeds", "1", "--out", str(tmp_path / "grid")])
    assert result.exit_code == 1, result.output
    assert asked == ["good"]


def test_a_grid_is_checked_once_before_its_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr("trireid.ablation.run_jobs", lambda *_, **__: pytest.fail("a run was started"))

    def refused(*settings, root, vary=("model.head=none,sdtps",)):
        path = tmp_path / "run.yaml"
        path.write_text(dump_config(tiny_config(root, tmp_path / "unused")))
        arguments = ["ablate", "--config", str(path), "--seeds", "3", "--out", str(tmp_path / "grid"), *settings]
        result = CliRunner().invoke(app, [*arguments, *(word for axis in vary for word in ("--vary", axis))])
        assert result.exit_code == 2, result.output
        return result.stderr.strip()

    nowhere = tmp_path / "nowhere" / "data"
    line = refused(root=nowhere)
    assert f"{nowhere}: no such folder; set data.root" in line
    assert "\n" not in line
    tree = write_tree(tmp_path / "data", identities=4)
    assert "needs 32 identities in a batch" in refused("data.batch_size=64", root=tree)
    assert refused(
        root=tree, vary=["model.backbone.depth=1,2", "model.backbone.pretrained=none,absent.pth"]
    ).startswith("error: depth=1, pretrained=absent.pth and 1 more: weight file absent.pth does not exist")
    assert not list(tmp_path.glob("grid/*/*"))


def test_costs_that_cannot_be_measured_do_not_lose_the_table(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("train: {epochs: 2}\n")
    (job,) = ablation.plan(tmp_path / "c.yaml", [Cell("a", ())], overrides=[], seeds=1, out=tmp_path / "grid")
    finished(job.folder, 0.5)
    (job.folder / "config.yaml").write_text(
        dump_config(load_config(tmp_path / "c.yaml", ablation.job_settings(job, [])))
    )
    (tmp_path / "cells.yaml").write_text("a: []\n")

    def out_of_memory(*_args, **_options):
        raise RunError("out of memory")

    monkeypatch.setattr("trireid.cli.bench.measure", out_of_memory)
    arguments = [
        "ablate",
        "--config",
        str(tmp_path / "c.yaml"),
        "--cells",
        str(tmp_path / "cells.yaml"),
        "--seeds",
        "1",
    ]
    result = CliRunner().invoke(app, [*arguments, "--seeds", "1", "--out", str(tmp_path / "grid")])
    assert result.exit_code == 0, result.output
    assert "the table has no costs: out of memory" in result.stderr
    assert "| a | 1 | last |" in (tmp_path / "grid/table.md").read_text()
