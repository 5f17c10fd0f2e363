"""Whole runs with absent modalities: dropout in training, files that lack some, the tables of `trireid test`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tiny_run import FOLDERS, tiny_config, write_tree
from trireid.cli.app import app
from trireid.config.load import override_config
from trireid.errors import ConfigError
from trireid.models.backbone import Backbone
from trireid.train import epoch as epochs
from trireid.train.checkpoint import load_checkpoint
from trireid.train.loop import train
from trireid.train.testing import evaluate_checkpoint as evaluate_checkpoint

pytestmark = pytest.mark.slow  # whole commands and trainings: too long in all for the fast tier

SUBSETS = ["rnt", "nt", "rt", "rn", "t", "n", "r"]


@pytest.fixture(scope="module")
def run(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(tree, folder, "model.head=hdm", "train.modality_dropout=0.5"), progress=False)
    return folder


def lacking(root: Path, *, layout: str) -> tuple[Path, str]:
    """The tree as a table, or as WMVeID863, of which every third triplet lacks one modality and every fifth two."""
    write_tree(root / "images")
    table = root / "set.csv"
    rows, vehicles = [], root / "vehicles"
    for split, name in (("train_171", "train"), ("test", "test")):
        for number, path in enumerate(sorted((root / "images" / split / "RGB").iterdir())):
            identity, camera = path.name.split("_")[:2]
            gone = {number % 3} if number % 3 == 1 else set()
            gone = {0, 2} if number % 5 == 4 else gone
            files = [root / "images" / split / folder / path.name for folder in FOLDERS]
            cells = ["" if m in gone else str(file.relative_to(root)) for m, file in enumerate(files)]
            rows.append([*cells, identity, camera, "", name])
            for part in ("train",) if name == "train" else ("query", "test"):
                for m, file in enumerate(files):
                    if m not in gone:
                        new = f"v{camera[-1]}_n0_s012_{number:04d}.jpg"
                        target = vehicles / part / identity[-4:] / ("vis", "ni", "th")[m] / new
                        target.parent.mkdir(parents=True, exist_ok=True)
                        Image.open(file).save(target)
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([["rgb", "nir", "tir", "id", "camera", "scene", "split"], *rows])
    return (table, "csv") if layout == "csv" else (vehicles, "wmveid863")


@pytest.mark.parametrize("layout", ["csv", "wmveid863"])
@pytest.mark.parametrize("head", ["none", "sdtps", "hdm_atmoe"])
def test_files_that_lack_a_modality_train_and_evaluate(tmp_path: Path, layout: str, head: str) -> None:
    root, name = lacking(tmp_path / "data", layout=layout)
    config = tiny_config(
        root, tmp_path / "run", f"data.format={name}", f"model.head={head}", "train.modality_dropout=0.3"
    )
    metrics = train(config, progress=False)
    assert all(torch.isfinite(torch.tensor(list(each.values()))).all() for each in metrics["feature"].values())
    tested = evaluate_checkpoint(tmp_path / "run", progress=False, missing_cases=True)
    assert tested["feature"] == metrics["feature"]
    assert any("lack a modality: pairs of items are compared by what both have" in line for line in tested["messages"])
    cases = tested["missing"]["cases"]
    assert cases["none"]["feature"] == {name: metrics["feature"][name] for name in cases["none"]["feature"]}
    assert cases["n"]["num_queries"] < cases["none"]["num_queries"]  # an item of NIR alone has nothing left
    assert cases["r"]["num_queries"] == cases["none"]["num_queries"]


def test_dropout_computes_fewer_images_and_never_empties_an_item(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, int, int]] = []
    embed, step = Backbone.embed, epochs.reid_loss

    def counted(self: Backbone, images: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        rows.append((len(images), 0, 0))
        return embed(self, images, shift)

    def looked(output: Any, label: Any, **settings: Any) -> Any:
        rows[-1] = (rows[-1][0], int(output.present.sum()), int(output.present.any(dim=1).sum()))
        return step(output, label, **settings)

    monkeypatch.setattr(Backbone, "embed", counted)
    monkeypatch.setattr(epochs, "reid_loss", looked)
    config = tiny_config(tree, tmp_path / "run", "train.modality_dropout=1.0", "train.epochs=1", "model.head=none")
    train(config, progress=False)
    steps = [each for each in rows if each[2]]
    assert steps
    assert all(computed == present and items == 8 for computed, present, items in steps)
    assert all(8 <= computed <= 16 for computed, _, _ in steps)  # one or two of three


def test_dropout_of_a_run_does_not_depend_on_workers(tree: Path, tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        settings = ("train.modality_dropout=0.5", "train.epochs=1", f"data.workers={workers}", "data.cache=none")
        found.append(train(tiny_config(tree, tmp_path / str(workers), *settings), progress=False)["feature"])
    assert found[0] == found[1]


def test_without_dropout_the_model_is_not_asked_to_look(tree: Path, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[bool] = []
    forward = Backbone.forward

    def noted(self: Backbone, images: Any, *, present: Any = None, camera: Any = None) -> Any:
        asked.append(present is not None)
        return forward(self, images, present=present, camera=camera)

    monkeypatch.setattr(Backbone, "forward", noted)
    train(tiny_config(tree, tmp_path / "run", "train.epochs=1"), progress=False)
    assert asked
    assert not any(asked)


def test_the_tables_come_of_one_pass_a_subset(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = Backbone.forward

    def counted(self: Backbone, images: Any, **settings: Any) -> Any:
        calls.append(len(images))
        return forward(self, images, **settings)

    monkeypatch.setattr(Backbone, "forward", counted)
    tested = evaluate_checkpoint(run, progress=False, missing_cases=True, any_to_any=True)
    assert sum(calls) == 7 * 24
    assert list(tested["missing"]["cases"]) == ["none", "r", "n", "t", "rn", "rt", "nt"]
    assert tested["any_to_any"]["subsets"] == SUBSETS
    for case, shown in zip(tested["missing"]["cases"].values(), range(7), strict=True):
        for name, figures in case["feature"].items():
            matrices = tested["any_to_any"]["feature"][name]
            assert matrices["mAP"][shown][shown] == figures["mAP"]
            assert matrices["rank1"][shown][shown] == figures["rank1"]
    cases = list(tested["missing"]["cases"].values())[1:]
    mean = sum(case["feature"]["head"]["mAP"] for case in cases) / 6
    assert tested["missing"]["mean"]["head"]["mAP"] == pytest.approx(mean)


@pytest.mark.parametrize(("case", "names"), [("r", "rgb"), ("nt", "nir, tir")])
def test_a_row_of_the_table_is_the_single_case(run: Path, case: str, names: str) -> None:
    table = evaluate_checkpoint(run, progress=False, missing_cases=True)["missing"]["cases"]
    config = override_config(load_checkpoint(run).config, [f"evaluate.missing=[{names}]"])
    alone = evaluate_checkpoint(run, config=config, progress=False)["feature"]
    assert table[case]["feature"] == {name: alone[name] for name in table[case]["feature"]}
    filled = evaluate_checkpoint(run, config=override_config(config, ["evaluate.missing_as=zeros"]), progress=False)
    assert filled["feature"] != alone


def test_zeros_in_place_of_images_are_what_upstream_sees(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = Backbone.forward

    def noted(self: Backbone, images: Any, *, present: Any = None, camera: Any = None) -> Any:
        seen.append((images.clone(), present))
        return forward(self, images, present=present, camera=camera)

    monkeypatch.setattr(Backbone, "forward", noted)
    config = override_config(load_checkpoint(run).config, ["evaluate.missing=[nir]", "evaluate.missing_as=zeros"])
    evaluate_checkpoint(run, config=config, progress=False)
    assert all(present is None for _, present in seen)
    assert not any(images[:, 1].any() for images, _ in seen)
    assert all(images[:, 0].any() for images, _ in seen)


def test_with_two_modalities_there_are_three_subsets(tree: Path, tmp_path: Path) -> None:
    settings = ("data.modalities=[rgb, tir]", "train.epochs=1")
    train(tiny_config(tree, tmp_path / "run", *settings), progress=False)
    tested = evaluate_checkpoint(tmp_path / "run", progress=False, missing_cases=True, any_to_any=True)
    assert list(tested["missing"]["cases"]) == ["none", "r", "t"]
    assert tested["any_to_any"]["subsets"] == ["rt", "t", "r"]


def test_the_tables_start_from_all_modalities(run: Path) -> None:
    config = override_config(load_checkpoint(run).config, ["evaluate.missing=[rgb]"])
    with pytest.raises(
        ConfigError, match=r"evaluate.missing .* withholds rgb, but the tables .* \(evaluate.missing=\[\]\)"
    ):
        evaluate_checkpoint(run, config=config, progress=False, missing_cases=True)


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_markdown_and_writes_both_forms(run: Path, tmp_path: Path) -> None:
    shown = call("test", run, "--missing", "all", "--any-to-any", "--out", tmp_path / "figures.json")
    assert shown.exit_code == 0, shown.output
    assert "| mean of 6 |" in shown.stdout
    assert "| query | rnt | nt | rt | rn | t | n | r |" in shown.stdout
    written = json.loads((tmp_path / "figures.json").read_text())
    assert set(written) >= {"feature", "missing", "any_to_any", "config"}
    page = call("test", run, "--missing", "all", "--out", tmp_path / "figures.md", "evaluate.missing_as=zeros")
    assert page.exit_code == 0, page.output
    text = (tmp_path / "figures.md").read_text()
    assert "| withheld | queries | gallery | mAP global |" in text
    assert "| nt | 24 | 24 |" in text


def test_an_unknown_case_is_one_line(run: Path) -> None:
    failed = call("test", run, "--missing", "rx")
    assert failed.exit_code == 2
    assert "--missing: given rx, allowed are r, n, t, rn, rt, nt, names such as rgb,nir, none, or all" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
