"""The choice of adaptive fusion on held-out scenes: veiled manifests, the rule, and the whole script on a tiny tree."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.trees import write_image
from trireid.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("model.backbone.name=tiny", "model.backbone.pretrained=none", "model.backbone.depth=null",
            "data.image_size=[32, 32]", "data.augmentation.padding=2", "data.batch_size=8", "data.num_instances=2",
            "train.epochs=1", "train.warmup_epochs=0", "train.device=cpu")  # fmt: skip


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("choose_fusion")


def write_tree(root):
    """Two identities of each of four training scenes and one of the test split, at two captures, 32 x 32 pixels."""
    for split, numbers in (("train", (38, 39, 61, 62, 100, 101, 180, 181)), ("test", (144,))):
        for number in numbers:
            for camera in (1, 2):
                for folder in ("RGB", "NI", "TI"):
                    write_image(root / split / folder / f"{number:06d}_cam{camera}_0_00.png", height=32, width=32)


def test_veiled_manifests_change_only_what_a_view_veils(script, tmp_path):
    write_tree(tmp_path / "tree")
    records = script.scan("tno_scenes", tmp_path / "tree").train
    scene = records[0].scene
    task = script.Task("recipe", (), (scene,), 1)
    path = script.write_view(records, task, "smoke in visible and NIR", tmp_path / "veiled")
    rows = list(csv.DictReader(path.open()))
    assert {row["split"] for row in rows if row["scene"] == scene} == {"test"}
    assert {row["split"] for row in rows if row["scene"] != scene} == {"train"}
    for row in rows:
        new = {name for name in ("rgb", "nir", "tir") if Path(row[name]).parent == tmp_path / "veiled"}
        assert new == ({"rgb", "nir"} if (row["split"], row["camera"]) == ("test", "2") else set())
    row = next(row for row in rows if Path(row["rgb"]).parent == tmp_path / "veiled")
    smoke, clear = (np.asarray(Image.open(row[name]).convert("L"), dtype=float) for name in ("rgb", "tir"))
    assert smoke.shape == clear.shape
    assert smoke.std() < 0.6 * clear.std()
    again = script.write_view(records, task, "smoke in visible and NIR", tmp_path / "again")
    assert Path(row["rgb"]).read_bytes() == (again.parent / Path(row["rgb"]).name).read_bytes()


def test_the_choice_is_the_mean_of_clear_and_veiled_scenes(script, monkeypatch):
    def run(clear, veiled):  # by_cross_camera +0.02; power 4 loses 0.02 clear and gains 0.1 veiled; each veil +0.01
        return {
            view: {
                f"{power} {rule}": (veiled + 0.025 * power + 0.01 * number if number else clear - 0.005 * power)
                + (0.02 if rule == "cross_camera" else 0.0)
                for power in (0, 4)
                for rule in script.RULES
            }
            for number, view in enumerate(script.VIEWS)
        }

    monkeypatch.setattr(script, "POWERS", (0, 4))
    monkeypatch.setattr(script, "SEEDS", (1, 2))
    names = ("one", "other", "half")
    tasks = {
        name: [script.Task(name, (), scenes, seed) for seed in (1, 2) for scenes in script.SINGLE] for name in names
    }
    runs = {task.key: (run(0.9, 0.5), 2) for task in tasks["one"]}
    runs |= {task.key: (run(0.8, 0.5), 2) for task in tasks["other"]}
    runs[tasks["one"][0].key] = (run(0.5, 0.5), 4)  # queries count: (4 * 0.5 + 6 * 0.9) / 10
    assert script.by_seed(runs, "one", script.AS_THEY_ARE, 0, "camera") == [pytest.approx(74.0), pytest.approx(90.0)]
    # the mean of seeds and rules, clear 82 + 1 - 2; of the veils 50 + 2.5 + 1 + 10
    assert script.score(runs, "one", 4) == pytest.approx((81 + 63.5) / 2)
    lines = script.table(runs, ["one", "other"]).splitlines()
    assert lines[-1] == "chosen: one, evaluate.adaptive_fusion=4"
    assert lines[2].startswith("| one | 4 | 72.2 | 80.0 ± 11.3 | 82.0 ± 11.3 | 61.0 ± 0.0 |")
    order = [line.split(" | ")[:2] for line in lines[2:6]]
    assert order == [["| one", "4"], ["| other", "4"], ["| one", "0"], ["| other", "0"]]
    runs |= {task.key: (run(1.0, 1.0), 2) for task in tasks["half"][:5]}  # one seed, and a scene of another
    lines = script.table(runs, ["one", "other", "half"]).splitlines()
    assert lines[-1] == "nothing is chosen: runs of half are missing"
    assert not any(line.startswith("| half") for line in lines)


@pytest.mark.slow
def test_the_script_writes_a_table_and_does_not_repeat_runs(script, tmp_path, monkeypatch, capsys):
    write_tree(tmp_path / "tree")
    (tmp_path / "cells.yaml").write_text("recipe: []\n")
    scenes = sorted({record.scene for record in script.scan("tno_scenes", tmp_path / "tree").train})
    monkeypatch.setattr(script, "SINGLE", ((scenes[0],), (scenes[1],)))
    monkeypatch.setattr(script, "SEEDS", (1,))
    folders = [
        "--root",
        str(tmp_path / "tree"),
        "--out",
        str(tmp_path / "out"),
        "--cells",
        str(tmp_path / "cells.yaml"),
    ]
    monkeypatch.setattr("sys.argv", ["choose_fusion.py", *folders, *SETTINGS])
    monkeypatch.chdir(ROOT)
    script.main()
    shown = capsys.readouterr().out
    assert "chosen: recipe, evaluate.adaptive_fusion=" in shown
    found = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert len(found) == 2
    for metrics, queries in found.values():
        assert list(metrics) == list(script.VIEWS)
        assert queries == 4
    assert any(metrics[script.AS_THEY_ARE] != metrics["smoke in visible and NIR"] for metrics, _ in found.values())
    monkeypatch.setattr(script, "run_task", None)  # a run would fail
    script.main()
    assert capsys.readouterr().out == shown
    monkeypatch.setattr("sys.argv", ["choose_fusion.py", *folders, *SETTINGS, "train.lr=0.5"])
    with pytest.raises(RunError, match="written with other cells or settings: give another --out"):
        script.main()
    monkeypatch.setattr("sys.argv", ["choose_fusion.py", *folders, f"--out={tmp_path / 'new'}", *SETTINGS])
    with pytest.raises(RunError, match="1 of 2 runs failed, see above"):
        script.main()
    shown = capsys.readouterr()
    assert "nothing is chosen: runs of recipe are missing" in shown.out
    assert "recipe | " in shown.err
