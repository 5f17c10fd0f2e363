"""What the user types first: the demo with its floors, and the upstream door with Gumbel on."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trireid.cli.demo import read_recipe

ROOT = Path(__file__).resolve().parents[1]


def call(*arguments, cwd):
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return done.stdout


@pytest.mark.slow
def test_the_demo_reaches_its_floors_and_leaves_a_page(tmp_path):
    said = call("-m", "trireid", "demo", "--out", str(tmp_path / "demo"), cwd=tmp_path)
    run = tmp_path / "demo" / "run"
    metrics, floors = json.loads((run / "metrics.json").read_text()), read_recipe()["floors"]
    assert floors == {"joint_map": 0.60, "untrained_map": 0.30}
    assert metrics["feature"]["joint"]["mAP"] >= floors["joint_map"]
    assert metrics["untrained"]["feature"]["joint"]["mAP"] <= floors["untrained_map"]
    assert "as expected" in said.splitlines()[-2]
    add, query = (shlex.split(line)[1:] for line in said.splitlines() if line.startswith("  trireid gallery "))
    assert "added 288 items" in call("-m", "trireid", *add, cwd=tmp_path)
    assert "query 000001_cam1_0_00 UNKNOWN" in call("-m", "trireid", *query, cwd=tmp_path)
    assert Path(tmp_path, add[add.index("--root") + 1], "test").is_dir()
    own = ["-m", "trireid", "gallery", "query", add[2], "--key", "000030_cam1_0_00", "--fmr", "0.01", "--json"]
    (found,) = json.loads(call(*own, cwd=tmp_path))
    assert found["known"] is True
    assert found["matches"][0]["identity"] == "000030"
    assert (run / "report.html").stat().st_size > 50_000


@pytest.mark.slow
def test_s14_the_users_commands_train_and_test_with_gumbel_on(tmp_path):
    """ViT-B from scratch on 32 x 16 pixels: every key of the user's file as it is, only sizes and paths changed."""
    size = ["--ids", "4", "--cameras", "2", "--per-camera", "2", "--size", "32x16"]
    call(
        "-m", "trireid", "synth", "--layout", "rgbnt201", "--out", str(tmp_path / "data/RGBNT201"), *size, cwd=tmp_path
    )
    pairs = ["MODEL.SDTPS_USE_GUMBEL", "True", "MODEL.PRETRAIN_PATH_T", "none", "SOLVER.MAX_EPOCHS", "1"]
    pairs += ["DATASETS.ROOT_DIR", str(tmp_path / "data"), "OUTPUT_DIR", str(tmp_path / "run")]
    pairs += ["INPUT.SIZE_TRAIN", "[32, 16]", "INPUT.SIZE_TEST", "[32, 16]", "DATALOADER.NUM_WORKERS", "0"]
    file = str(ROOT / "configs/RGBNT201/DeMo_SDTPS.yml")
    call(str(ROOT / "train_net.py"), "--config_file", file, *pairs, cwd=tmp_path)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert set(metrics["feature"]) == {"global", "head", "joint"}
    assert "use_gumbel: true" in (tmp_path / "run/config.yaml").read_text()
    said = call(str(ROOT / "test_net.py"), "--config_file", file, *pairs, cwd=tmp_path)
    assert f"{100 * metrics['feature']['joint']['mAP']:.1f}" in said
