"""The command line: what each command calls and prints, and how mistakes end."""

import errno
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import trireid.train.loop
import trireid.train.testing
from trireid.cli import demo
from trireid.cli.app import app
from trireid.cli.console import note, progress, say, show_log, show_metrics, show_table
from trireid.cli.evaluate import parse_missing
from trireid.cli.guard import guarded, rest_idle_threads
from trireid.cli.synth import parse_size
from trireid.config.load import validate
from trireid.config.schema import Config
from trireid.errors import ConfigError, DataError, RunError

FIGURES = {
    name: {"mAP": 0.5, "mINP": 0.25, "rank1": 0.75, "rank5": 0.8, "rank10": 0.9} for name in ("global", "head", "joint")
}
METRICS = {
    "feature": FIGURES,
    "best": {"epoch": 3, "chosen_on": "test", "feature": FIGURES},
    "untrained": {"feature": {"joint": {"mAP": 0.1}}},
    "num_queries": 8,
    "num_unmatched": 2,
}


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failed(result, code=2):
    """The error line of a result that ended without a traceback."""
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture
def trained(monkeypatch):
    """Replaces the training by a record of its arguments."""
    calls = []

    def train(config, **arguments):
        calls.append((config, arguments))
        return METRICS

    monkeypatch.setattr(trireid.train.loop, "train", train)
    return calls


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train:\n  epochs: 4\n")
    return path


# -- help, version, speed ---------------------------------------------------------------------------------------------


def run_module(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_help_lists_the_commands_without_loading_torch():
    code = "import sys; from trireid.cli import main; sys.argv = ['trireid', '--help']\n"
    code += "try: main()\nfinally: print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    result = run_module("-c", code)
    assert result.stdout.rstrip().endswith("False False")
    for command in ("demo", "train", "test", "synth", "check-data", "report"):
        assert command in result.stdout


def test_reading_a_configuration_loads_no_torch():
    code = "import sys, trireid; trireid.load_config(None, ['train.epochs=2']); print('torch' in sys.modules)"
    assert run_module("-c", code).stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.parametrize("start", ["main", "train_from_upstream", "evaluate_from_upstream"])
def test_idle_threads_rest_before_torch_is_there(start):
    home = "trireid.cli" if start == "main" else "trireid.cli.upstream_scripts"
    code = f"import os, sys; os.environ.pop('OMP_WAIT_POLICY', None); from {home} import {start}\n"
    code += "sys.argv = ['x', '--config_file', 'absent.yml'] if 'upstream' in sys.argv[1] else ['x', '--version']\n"
    code += f"try: {start}()\nfinally: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    assert run_module("-c", code, start).stdout.splitlines()[-1] == "PASSIVE False"


def test_what_the_user_set_for_threads_stays(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    rest_idle_threads()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_version():
    result = call("--version")
    assert (result.exit_code, result.output) == (0, f"trireid {trireid.__version__}\n")


def test_the_plain_version_loads_no_torch():
    code = "import sys; from trireid.cli import main; sys.argv = ['trireid', '--version']\n"
    code += "try: main()\nfinally: print('torch' in sys.modules)"
    assert run_module("-c", code).stdout.splitlines() == [f"trireid {trireid.__version__}", "False"]


@pytest.mark.parametrize("options", [("--version", "--verbose"), ("--verbose", "--version")])
def test_the_verbose_version_holds_what_an_issue_needs(options):
    import torch

    result = call(*options)
    assert result.exit_code == 0
    first, *others = result.stdout.splitlines()
    shown = dict(line.split(": ", 1) for line in others)
    assert first == f"trireid {trireid.__version__}"
    assert shown["python"].split()[0] == platform.python_version()
    for package in ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "tifffile"):
        assert shown[package].split("+")[0] == metadata.version(package).split("+")[0]
    assert shown["platform"] == platform.platform()
    assert "GiB memory" in shown["cpu"]
    assert int(shown["threads"].split()[0]) == torch.get_num_threads()
    assert shown["cuda"] == (torch.version.cuda or "torch was built without CUDA")
    assert shown["precision"].split()[0] in ("fp32", "bf16")
    if not torch.cuda.is_available():
        assert (shown["device"].split()[0], shown["gpu"]) == ("cpu", "none that torch can use")


def test_the_verbose_version_names_every_gpu(monkeypatch):
    import torch

    names = ["First", "Second"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda number: SimpleNamespace(name=names[number], total_memory=3 * 2**30, major=9, minor=0),
    )
    shown = call("--version", "--verbose").stdout
    assert "gpu 0: First, 3.0 GiB memory, compute capability 9.0\n" in shown
    assert "gpu 1: Second, 3.0 GiB" in shown
    assert "none that torch can use" not in shown


def test_verbose_alone_says_what_it_goes_with():
    assert "--version" in failed(call("--verbose", "demo"))


@pytest.mark.parametrize("command", ["demo", "train", "test", "ablate", "bench", "synth", "check-data", "report"])
def test_every_command_has_help(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_no_arguments_show_the_help():
    assert "Usage" in call().output


@pytest.mark.parametrize("arguments", [["fly"], ["train"], ["train", "--config"], ["test"], ["synth"]])
def test_wrong_usage_ends_with_code_2(arguments):
    failed(call(*arguments))


# -- train -----------------------------------------------------------------------------------------------------------


def test_train_hands_the_resolved_configuration_on(trained, settings, tmp_path):
    out = tmp_path / "run"
    arguments = ["--set", "train.lr=1e-3", "--resume", "train.seed=3", f"output={out}", "data.batch_size=16"]
    result = call("train", "--config", settings, *arguments)
    assert result.exit_code == 0, result.output
    [(config, given)] = trained
    assert (config.train.epochs, config.train.lr, config.train.seed, config.data.batch_size) == (4, 1e-3, 3, 16)
    assert given["resume"] is True
    assert config.output == out


def test_train_says_figures_split_and_where_to_look(trained, settings):
    result = call("train", "--config", settings)
    for word in ("50.0", "25.0", "75.0", "3 joint", "chosen on the test split", "trireid report runs/run"):
        assert word in result.stdout, word
    assert "biased: its epoch was chosen on the test split" in result.stderr
    assert "2 of 8 queries have no match" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "absent.yaml"], "error: configuration file absent.yaml does not exist"),
        (["--config", "{settings}", "train.epoch=3"], "unknown setting train.epoch; the nearest is train.epochs"),
        (["--config", "{settings}", "--set", "train.epochs"], "has no value"),
        (["--config", "{settings}", "data.root=/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(settings, tmp_path, arguments, message):
    filled = [argument.format(settings=settings) for argument in arguments]
    error = failed(call("train", *filled, f"output={tmp_path / 'run'}"))
    assert message in error
    assert len([line for line in error.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ((), "stopped before anything was saved: start with the same command again"),
        (("config.yaml",), "before the first state was saved (train.checkpoint_every="),
        (("config.yaml", "state/state.pt"), "run/state: continue with the same command and --resume"),
    ],
)
def test_ctrl_c_says_what_is_left(monkeypatch, settings, tmp_path, left, said):
    def interrupted(*_, **__):
        for name in left:
            (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "run" / name).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(trireid.train.loop, "train", interrupted)
    error = failed(call("train", "--config", settings, f"output={tmp_path / 'run'}"), code=130)
    assert said in error.replace("\n", "")


# -- errors in general -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ConfigError, DataError, RunError])
def test_errors_of_a_user_become_a_line(capsys, error):
    with pytest.raises(SystemExit) as caught, guarded():
        raise error("what to do")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: what to do\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EDQUOT])
def test_faults_of_the_machine_become_a_line_with_the_place(capsys, number):
    with pytest.raises(SystemExit) as caught, guarded():
        raise OSError(number, os.strerror(number), "/full/disk")
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: /full/disk: {os.strerror(number)}; ")
    assert line.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("bug"), RuntimeError("bug"), FileNotFoundError(errno.ENOENT, "bug")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)), guarded():
        raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "the memory that this process may use is full"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "fewer data.workers or a smaller data.batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "ulimit -v"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"), "the memory of the GPU is full"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "the memory of the GPU is full"),
        (RuntimeError("can't start new thread"), "no further thread"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "was ended from outside"),
        (RuntimeError("Too many open files. Communication with the workers"), "ulimit -n"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ulimit -v"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/a"), "/a: Too many open files; use fewer data.workers"),
    ],
)
def test_too_little_of_the_machine_is_a_line(capsys, error, said):
    with pytest.raises(SystemExit) as caught, guarded():
        raise error
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert said in line
    assert line.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("module", ["typer", "pydantic", "torch"])
def test_ctrl_c_while_a_module_is_imported_ends_in_a_line(module, settings, tmp_path):
    """Also where the module takes the interrupt for a fault of its own."""
    code = f"""
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
real = builtins.__import__

def interrupted(name, *arguments):
    if name == {module!r}:
        builtins.__import__ = real
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise RecursionError("what became of it") from None
    return real(name, *arguments)

builtins.__import__ = interrupted
from trireid.cli import main
sys.argv = ["trireid", "train", "--config", {str(settings)!r}, "output={tmp_path / "run"}"]
main()
"""
    done = run_module("-c", code)
    assert (done.returncode, done.stderr) == (130, "stopped\n")


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [500_000, 1_500_000, 3_100_000, 3_300_000])
def test_too_little_address_space_is_a_line(kilobytes, settings, tmp_path):
    command = (
        f"ulimit -v {kilobytes} && exec {sys.executable} -m trireid train --config {settings} output={tmp_path / 'run'}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_ctrl_c_anywhere_ends_with_130(capsys):
    with pytest.raises(SystemExit) as caught, guarded():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


# -- test ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(monkeypatch):
    """Replaces checkpoint and evaluation by a record of the configuration."""
    calls = []

    class Saved:
        config = Config()

    def evaluate_checkpoint(path, *, config, progress, missing_cases, any_to_any, by, precision):
        calls.append((path, config))
        counts = {"num_queries": 8, "num_gallery": 9, "messages": ["one thing"]}
        return {"checkpoint": str(path), "epoch": 5, "note": "last", "feature": FIGURES, **counts}

    monkeypatch.setattr("trireid.train.checkpoint.load_checkpoint", lambda path: Saved)
    monkeypatch.setattr(trireid.train.testing, "evaluate_checkpoint", evaluate_checkpoint)
    return calls


def test_test_changes_the_configuration_of_the_checkpoint(evaluated):
    result = call("test", "runs/a", "--rerank", "--missing", "tr", "evaluate.batch_size=7", "--set", "data.workers=0")
    assert result.exit_code == 0, result.output
    [(path, config)] = evaluated
    assert path == Path("runs/a")
    assert (config.evaluate.rerank, config.evaluate.missing) == (True, ("rgb", "tir"))
    assert (config.evaluate.batch_size, config.data.workers) == (7, 0)
    assert "8 queries, 9 in the gallery" in result.stdout
    assert "50.0" in result.stdout
    assert "note: one thing" in result.stderr


def test_test_writes_its_figures_and_leaves_the_settings_out_of_the_output(evaluated, tmp_path):
    result = call("test", "runs/a", "--out", tmp_path / "figures.json", "evaluate.batch_size=7")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["feature"] == FIGURES
    assert written["config"]["evaluate"]["batch_size"] == 7
    assert "batch_size" not in result.stdout


def test_test_without_options_keeps_the_configuration(evaluated):
    call("test", "runs/a")
    assert evaluated[0][1] == Config()


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        (("--centring", "camera"), "evaluate.centring=train"),
        (("--no-rerank",), "evaluate.rerank=true"),
        (("--missing", "rgb,nir"), "evaluate.missing=[tir]"),
        (("--precision", "fp16"), "train.precision=fp32"),
        (("--skip-bad",), "data.skip_bad=false"),
    ],
)
def test_an_option_and_a_setting_that_contradict_each_other_are_refused(evaluated, options, setting):
    message = failed(call("test", "runs/a", *options, setting))
    assert f"{' '.join(options)} and {setting} contradict each other: give one of them" in message
    assert not evaluated


def test_an_option_and_a_setting_may_agree_and_the_last_setting_counts(evaluated):
    call("test", "runs/a", "--centring", "camera", "evaluate.centring=train", "evaluate.centring=camera", "--rerank")
    assert evaluated[0][1].evaluate.centring == "camera"


@pytest.mark.parametrize(
    "command",
    [("test", "run"), ("embed", "run", "--split", "test", "--out", "o"), ("gallery", "create", "g", "run")],
)
def test_commands_that_centre_by_camera_name_all_values(command):
    message = failed(call(*command, "--centring", "wrong"))
    assert message.endswith("--centring is 'wrong': allowed are none, train, camera\n")


def test_test_of_a_folder_without_a_run_is_a_clear_error(tmp_path):
    assert str(tmp_path) in failed(call("test", tmp_path))
    assert "does not exist" in failed(call("test", tmp_path / "absent.safetensors"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("r", ["rgb"]),
        ("tn", ["nir", "tir"]),
        ("rgb,tir", ["rgb", "tir"]),
        ("nir", ["nir"]),
        ("none", []),
        ("R", ["rgb"]),
    ],
)
def test_modalities_to_withhold_are_letters_or_names(text, names):
    assert parse_missing(text) == names


@pytest.mark.parametrize("text", ["x", "rr", "rgb,rgb", "rgb,blue", "red"])
def test_other_modalities_are_refused(text):
    with pytest.raises(ConfigError, match="--missing"):
        parse_missing(text)


# -- synth, check-data, report -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    out = tmp_path_factory.mktemp("synth") / "set"
    arguments = ["--layout", "rgbnt201", "--out", out, "--ids", 2, "--cameras", 2, "--per-camera", 1]
    result = call("synth", *arguments, "--size", "32x16", "--workers", 0)
    assert result.exit_code == 0, result.output
    assert f"check-data --format rgbnt201 --root {out}" in result.stdout
    return out


def test_synth_writes_a_tree_that_check_data_accepts(tree):
    result = call("check-data", "--format", "rgbnt201", "--root", tree)
    assert result.exit_code == 0, result.output
    assert "no fault found" in result.stdout
    assert "3951" in result.stdout  # the published count stands beside the one found


def test_synth_does_not_write_over_a_folder(tree):
    assert str(tree) in failed(call("synth", "--layout", "rgbnt201", "--out", tree, "--ids", 2))


@pytest.mark.parametrize(
    "arguments",
    [["--layout", "market"], ["--difficulty", "mean"], ["--ids", 1], ["--size", "big"], ["--names", "a", "--ids", 3]],
)
def test_synth_refuses_what_is_not_allowed(tmp_path, arguments):
    assert failed(call("synth", "--out", tmp_path / "set", *arguments)).startswith("error:")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(("text", "size"), [("64x32", (64, 32)), ("128X256", (128, 256)), ("32,16", (32, 16))])
def test_size_is_height_by_width(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["64", "0x4", "64x32x3", "-1x5", "axb"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ConfigError, match="--size"):
        parse_size(text)


def test_check_data_lists_faults_and_ends_with_2_unless_they_are_skipped(tree, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tree, broken)
    image = sorted(broken.glob("train*/TI/*"))[0]
    image.write_bytes(b"not an image")
    result = call("check-data", "--format", "rgbnt201", "--root", broken)
    assert result.exit_code == 2
    assert image.name in result.stdout
    skipped = call("check-data", "--format", "rgbnt201", "--root", broken, "--skip-bad")
    assert skipped.exit_code == 0, skipped.output
    assert image.name in skipped.stdout
    assert "leaves these triplets out" in skipped.stderr


def test_check_data_of_nothing_is_a_fault_even_when_faults_are_skipped(tmp_path):
    for extra in ([], ["--skip-bad"]):
        assert call("check-data", "--format", "rgbnt201", "--root", tmp_path / "absent", *extra).exit_code == 2
    assert "unknown" in failed(call("check-data", "--format", "tiff", "--root", tmp_path))


def test_report_of_a_folder_without_a_run_is_a_clear_error(tmp_path):
    assert str(tmp_path) in failed(call("report", tmp_path))


# -- demo ------------------------------------------------------------------------------------------------------------


def test_the_recipe_is_a_valid_run_on_the_cpu():
    recipe = demo.read_recipe()
    config = validate(recipe["run"])
    assert set(recipe) == {"synthetic", "calibration", "target_fmr", "floors", "run"}
    assert recipe["calibration"]["seed"] != recipe["synthetic"]["seed"]
    assert (config.train.device, config.model.head, config.model.backbone.pretrained) == ("cpu", "sdtps", "none")
    assert tuple(recipe["synthetic"]["image_size"]) == config.data.image_size
    assert recipe["synthetic"]["layout"] == config.data.format
    assert recipe["floors"] == {"joint_map": 0.60, "untrained_map": 0.30}


@pytest.mark.parametrize(
    ("trained_map", "untrained_map", "good"), [(0.61, 0.29, True), (0.59, 0.29, False), (0.61, 0.31, False)]
)
def test_the_demo_compares_with_its_floors(capsys, trained_map, untrained_map, good):
    figures = {"joint": {"mAP": trained_map, "rank1": 0.9}}
    floors = {"joint_map": 0.6, "untrained_map": 0.3}
    assert demo.compare(figures, {"joint": {"mAP": untrained_map}}, floors) is good
    said = capsys.readouterr().out
    assert f"{trained_map:.3f}" in said
    assert f"{untrained_map:.3f}" in said
    assert ("NOT as expected" in said) is not good


def test_the_demo_goes_from_images_to_a_page_and_uses_images_again(trained, monkeypatch, tmp_path):
    recipe = demo.read_recipe()
    recipe["synthetic"] |= {"num_ids": 2, "per_camera": 1, "workers": 0}
    monkeypatch.setattr(demo, "read_recipe", lambda: json.loads(json.dumps(recipe)))
    recipe["calibration"] |= {"num_ids": 2, "per_camera": 1}
    monkeypatch.setattr("trireid.report.page.write_report", lambda run: run / "report.html")
    monkeypatch.setattr(demo, "write_calibration", lambda run, images, fmr: None)  # nothing was trained
    first = call("demo", "--out", tmp_path, "train.epochs=2")
    assert first.exit_code == 1, first.output  # the recorded figures lie below the floor
    [(config, given)] = trained
    assert config.train.epochs == 2
    assert given["measure_untrained"] is True
    assert list(config.data.root.glob("train*/RGB/*.jpg"))
    config.output.mkdir()
    second = call("demo", "--out", tmp_path)
    assert "an earlier demo wrote" in second.stderr
    assert trained[1][0].output == tmp_path / "run-2"
    assert trained[1][0].data.root == config.data.root
    for word in ("images:", "run:", "page:", "next:", "trained:", "untrained:"):
        assert word in second.stdout


# -- what is written ---------------------------------------------------------------------------------------------------


def test_only_the_main_process_writes(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    show_metrics("figures", FIGURES)
    assert capsys.readouterr() == ("", "")


def test_names_of_others_do_not_reach_the_terminal_as_commands(capsys):
    name = "a\x1b]0;title\x07\udcff"
    say(f"{name}\nsecond line")
    note(name)
    show_table("title", ["a"], [[name]])
    with pytest.raises(SystemExit), guarded():
        raise ConfigError(name)
    out, err = capsys.readouterr()
    assert "a\\x1b]0;title\\x07\\udcff\nsecond line" in out
    assert all(line.isprintable() for line in (out + err).split("\n"))


def test_figures_that_are_not_there_are_a_dash(capsys):
    show_metrics("figures", {"joint": {"mAP": 0.5}})
    assert "-" in capsys.readouterr().out


def test_the_bar_starts_with_the_work_and_not_before(capsys):
    with pytest.raises(DataError), progress("working"):
        raise DataError("at once")
    assert capsys.readouterr().err == ""
    with progress("working") as bar:
        bar.reach(1, 2)
        bar.reach(2, 2)
    assert "2/2" in capsys.readouterr().err


def test_the_log_is_shown_once_however_often_it_is_asked_for(capsys):
    import logging

    for _ in range(2):
        show_log()
    logging.getLogger("trireid.models.build").info("weights loaded")
    assert capsys.readouterr().err == "weights loaded\n"


def test_a_line_of_a_name_does_not_pass_for_a_message(capsys):
    with pytest.raises(SystemExit), guarded():
        raise DataError("no folder x\nerror: all is well")
    note("y\nerror: forged")
    with progress("checking z\x1b[31m\nerror: forged") as bar:
        bar.reach(1, 2)
        assert "\n" not in bar.line()
        assert bar.line().isprintable()
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == ["error: no folder x"]
