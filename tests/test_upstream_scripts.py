"""train_net.py and test_net.py take what upstream's users type."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trireid.train.loop
import trireid.train.testing
from trireid.cli.console import note
from trireid.cli.upstream_scripts import evaluate_from_upstream, train_from_upstream
from trireid.errors import DataError

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

    def evaluate_checkpoint(path, *, config, progress, **tables):
        calls.append((path, config))
        counts = {"num_queries": 8, "num_gallery": 9, "messages": []}
        return {"checkpoint": str(path), "epoch": 5, "note": "", "feature": FIGURES, **counts}

    monkeypatch.setattr(trireid.train.testing, "evaluate_checkpoint", evaluate_checkpoint)
    return calls


def test_s14_the_users_own_command_trains_sdtps(trained, capsys):
    train_from_upstream(["--config_file", SDTPS])
    [(config, arguments)] = trained
    assert (config.model.head, config.model.sdtps.preset, config.data.format) == ("sdtps", "reference", "rgbnt201")
    assert arguments["resume"] is False
    captured = capsys.readouterr()
    assert "differs from upstream's code on purpose" in captured.err
    assert "50.0" in captured.out


@pytest.mark.parametrize("value", ["True", "False"])
def test_s14_gumbel_is_switched_on_the_command_line(trained, value):
    train_from_upstream(["--config_file", SDTPS, "MODEL.SDTPS_USE_GUMBEL", value])
    assert trained[0][0].model.sdtps.use_gumbel is (value == "True")


def test_parity_is_a_switch_of_both_doors(trained, evaluated, capsys):
    train_from_upstream(["--config_file", SDTPS, "--parity", "--resume", "SOLVER.MAX_EPOCHS", "7"])
    evaluate_from_upstream(["--config_file", SDTPS, "--parity", "TEST.WEIGHT", "a.safetensors", "TEST.MISS", "n"])
    [(config, arguments)], [(_, tested)] = trained, evaluated
    assert (config.train.lr_noise, config.train.epochs, arguments["resume"]) == (True, 7, True)
    assert (tested.evaluate.missing, tested.evaluate.missing_as) == (("nir",), "zeros")
    assert "--parity, as upstream's code" in capsys.readouterr().err


def test_pairs_lists_and_resume_go_together(trained):
    sizes = ["INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]"]
    train_from_upstream(["--config_file", SDTPS, "--resume", *sizes, "OUTPUT_DIR", "runs/x"])
    [(config, arguments)] = trained
    assert (config.data.image_size, config.output, arguments["resume"]) == ((64, 32), Path("runs/x"), True)


def test_test_net_takes_the_weight_that_is_given(evaluated):
    evaluate_from_upstream(["--config_file", SDTPS, "TEST.WEIGHT", "a/best.safetensors", "TEST.MISS", "rt"])
    [(path, config)] = evaluated
    assert path == Path("a/best.safetensors")
    assert config.evaluate.missing == ("rgb", "tir")


def test_test_net_without_a_weight_takes_the_run_of_the_output_folder(evaluated, tmp_path):
    evaluate_from_upstream(["--config_file", SDTPS, "OUTPUT_DIR", str(tmp_path)])
    assert evaluated[0][0] == tmp_path


@pytest.mark.parametrize(
    ("door", "arguments", "message"),
    [
        (train_from_upstream, ["--config_file", "absent.yml"], "error: configuration file absent.yml does not exist"),
        (train_from_upstream, ["--config_file", SDTPS, "MODEL.SDTP", "1"], "unknown upstream setting MODEL.SDTP"),
        (train_from_upstream, ["--config_file", SDTPS, "MODEL.FROZEN", "True"], "train.backbone_lr=0"),
        (train_from_upstream, ["--config_file", SDTPS, "MODEL.HDM"], "left over"),
        (train_from_upstream, [], "--config_file"),
        (
            train_from_upstream,
            ["--config_file", str(ROOT / "configs/trireid/rgbnt201/sdtps.yaml")],
            "trireid train --config",
        ),
        (evaluate_from_upstream, ["--config_file", SDTPS, "OUTPUT_DIR", "no/such/run"], "give TEST.WEIGHT"),
        (
            evaluate_from_upstream,
            ["--config_file", SDTPS, "TEST.WEIGHT", "no.safetensors"],
            "no.safetensors does not exist",
        ),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(capsys, door, arguments, message):
    with pytest.raises(SystemExit) as caught:
        door(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def refused(door, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        door(["--config_file", SDTPS, *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_start_weights_are_missed_before_any_image_is_read_and_the_way_on_is_a_key(monkeypatch, tmp_path, capsys):
    def no_network(*_arguments, **_options):
        raise OSError("no network")

    def read(*_arguments, **_options):
        raise DataError("images are read; see data.root, or set data.skip_bad=true and train.optimizer=adamw")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(trireid.train.loop, "open_inputs", read)
    output = ["OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu", "DATASETS.ROOT_DIR", str(tmp_path)]
    assert "RGBNT201: no such folder; set DATASETS.ROOT_DIR to" in refused(train_from_upstream, output, capsys)
    (tmp_path / "RGBNT201").mkdir()
    said = refused(train_from_upstream, output, capsys)
    assert "set MODEL.PRETRAIN_PATH_T to a local file (for CLIP OpenAI's ViT-B-16.pt), or to none" in said
    assert "model.backbone.pretrained" not in said
    said = refused(train_from_upstream, [*output, "MODEL.PRETRAIN_PATH_T", "absent.pt"], capsys)
    assert "absent.pt does not exist: set MODEL.PRETRAIN_PATH_T to a local file" in said
    said = refused(train_from_upstream, [*output, "model.backbone.pretrained", "none"], capsys)
    assert "model.backbone.pretrained is one of trireid's own settings; upstream's key for it is MODEL.PRETRAIN" in said
    (tmp_path / "weights.safetensors").write_bytes(b"nothing of the kind")
    said = refused(
        train_from_upstream, [*output, "MODEL.PRETRAIN_PATH_T", str(tmp_path / "weights.safetensors")], capsys
    )
    assert "weights.safetensors cannot be read" in said
    assert not (tmp_path / "run").exists()
    said = refused(train_from_upstream, [*output, "MODEL.PRETRAIN_PATH_T", "none"], capsys)
    assert "see DATASETS.ROOT_DIR, or set data.skip_bad true and SOLVER.OPTIMIZER_NAME AdamW" in said


def test_a_setting_without_a_key_is_given_as_a_pair(trained, capsys):
    pairs = ["data.skip_bad", "true", "data.cache", "disk", "train.lr_noise", "false", "SOLVER.MAX_EPOCHS", "7"]
    train_from_upstream(["--config_file", SDTPS, "--parity", *pairs])
    [(config, _)] = trained
    assert (config.data.skip_bad, config.data.cache, config.train.lr_noise, config.train.epochs) == (
        True,
        "disk",
        False,
        7,
    )
    assert "data.skip_bad: given 'maybe'" in refused(train_from_upstream, ["data.skip_bad", "maybe"], capsys)


def test_notes_of_the_doors_name_upstreams_keys(monkeypatch, capsys):
    noted = lambda *_, **__: note("see data.val_ids=8, output=x") or {}  # noqa: E731
    monkeypatch.setattr(trireid.train.testing, "evaluate_checkpoint", noted)
    evaluate_from_upstream(["--config_file", SDTPS, "TEST.WEIGHT", "a.safetensors"])
    note("and data.root=x as it is")
    err = capsys.readouterr().err
    assert "note: see data.val_ids 8, OUTPUT_DIR x\n" in err
    assert "note: and data.root=x as it is" in err


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
