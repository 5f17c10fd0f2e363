"""train_net.py and test_net.py take what upstream's users type."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trireid.train.loop
import trireid.train.testing
from trireid.cli.doors import evaluate_door, train_door

ROOT = Path(__file__).parents[1]
SDTPS = str(ROOT / "configs" / "RGBNT201" / "DeMo_SDTPS.yml")
FIGURES = {"joint": {"mAP": 0.5, "mINP": 0.5, "rank1": 0.5, "rank5": 0.5, "rank10": 0.5}}


@pytest.fixture
def trained(monkeypatch):
    calls = []

    def train(config, **arguments):
        calls.append((config, arguments))
        return {"feature": FIGURES}

    monkeypatch.setattr(trireid.train.loop, "train", train)
    return calls


@pytest.fixture
def evaluated(monkeypatch):
    calls = []

    def test_checkpoint(path, *, config, progress, **tables):
        calls.append((path, config))
        counts = {"num_queries": 8, "num_gallery": 9, "messages": []}
        return {"checkpoint": str(path), "epoch": 5, "note": "", "feature": FIGURES, **counts}

    monkeypatch.setattr(trireid.train.testing, "test_checkpoint", test_checkpoint)
    return calls


def test_s14_the_users_own_command_trains_sdtps(trained, capsys):
    train_door(["--config_file", SDTPS])
    [(config, arguments)] = trained
    assert (config.model.head, config.model.sdtps.preset, config.data.format) == ("sdtps", "reference", "rgbnt201")
    assert arguments["resume"] is False
    captured = capsys.readouterr()
    assert "on purpose not as upstream's code" in captured.err
    assert "50.0" in captured.out


@pytest.mark.parametrize("value", ["True", "False"])
def test_s14_gumbel_is_switched_on_the_command_line(trained, value):
    train_door(["--config_file", SDTPS, "MODEL.SDTPS_USE_GUMBEL", value])
    assert trained[0][0].model.sdtps.use_gumbel is (value == "True")


def test_parity_is_a_switch_of_both_doors(trained, evaluated, capsys):
    train_door(["--config_file", SDTPS, "--parity", "--resume", "SOLVER.MAX_EPOCHS", "7"])
    evaluate_door(["--config_file", SDTPS, "--parity", "TEST.WEIGHT", "a.safetensors", "TEST.MISS", "n"])
    [(config, arguments)], [(_, tested)] = trained, evaluated
    assert (config.train.lr_noise, config.train.epochs, arguments["resume"]) == (True, 7, True)
    assert (tested.evaluate.missing, tested.evaluate.missing_as) == (("nir",), "zeros")
    assert "--parity, as upstream's code" in capsys.readouterr().err


def test_pairs_lists_and_resume_go_together(trained):
    sizes = ["INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]"]
    train_door(["--config_file", SDTPS, "--resume", *sizes, "OUTPUT_DIR", "runs/x"])
    [(config, arguments)] = trained
    assert (config.data.image_size, config.output, arguments["resume"]) == ((64, 32), Path("runs/x"), True)


def test_test_net_takes_the_weight_that_is_given(evaluated):
    evaluate_door(["--config_file", SDTPS, "TEST.WEIGHT", "a/best.safetensors", "TEST.MISS", "rt"])
    [(path, config)] = evaluated
    assert path == Path("a/best.safetensors")
    assert config.evaluate.missing == ("rgb", "tir")


def test_test_net_without_a_weight_takes_the_run_of_the_output_folder(evaluated, tmp_path):
    evaluate_door(["--config_file", SDTPS, "OUTPUT_DIR", str(tmp_path)])
    assert evaluated[0][0] == tmp_path


@pytest.mark.parametrize(
    ("door", "arguments", "message"),
    [
        (train_door, ["--config_file", "absent.yml"], "error: configuration file absent.yml does not exist"),
        (train_door, ["--config_file", SDTPS, "MODEL.SDTP", "1"], "unknown upstream setting MODEL.SDTP"),
        (train_door, ["--config_file", SDTPS, "MODEL.FROZEN", "True"], "train.backbone_lr=0"),
        (train_door, ["--config_file", SDTPS, "MODEL.HDM"], "left over"),
        (train_door, [], "--config_file"),
        (train_door, ["--config_file", str(ROOT / "configs/rgbnt201/sdtps.yaml")], "trireid train --config"),
        (evaluate_door, ["--config_file", SDTPS, "OUTPUT_DIR", "no/such/run"], "give TEST.WEIGHT"),
        (evaluate_door, ["--config_file", SDTPS, "TEST.WEIGHT", "no.safetensors"], "no.safetensors does not exist"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(capsys, door, arguments, message):
    with pytest.raises(SystemExit) as caught:
        door(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train_net.py", "test_net.py"])
def test_the_doors_are_thin_and_run_from_the_repository(name):
    tree = ast.parse((ROOT / name).read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    result = subprocess.run(
        [sys.executable, str(ROOT / name), "--config_file", SDTPS, "MODEL.SDTPS_GUMBEL", "True"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.strip() == (
        "error: unknown upstream setting MODEL.SDTPS_GUMBEL; the nearest is MODEL.SDTPS_USE_GUMBEL"
    )
