"""What a test with withheld modalities does where something is lacking: items, matches, whole cases, common blocks."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tiny_run import FOLDERS, tiny_config, untrained_run, write_tree
from trireid.cli.app import app
from trireid.cli.metric_tables import page
from trireid.config.load import override_config
from trireid.embedding.opening import open_embedder
from trireid.errors import InputError
from trireid.evaluation.feature_files import load_features
from trireid.train.checkpoint import load_checkpoint
from trireid.train.loop import train
from trireid.train.testing import evaluate_checkpoint as evaluate_checkpoint

pytestmark = pytest.mark.slow  # whole commands and trainings: too long in all for the fast tier

IDENTITIES, ITEMS = 6, 24
ROOT = Path(__file__).resolve().parents[2]


def table(root: Path, *, test: dict[int, str], queries: str = "") -> Path:
    """A tree as a CSV: letters of what test items have by number (-1: all others), and of queries where they differ."""
    write_tree(root, identities=IDENTITIES)
    rows = []
    for folder, split in (("train_171", "train"), ("test", "query"), ("test", "gallery")):
        for number, path in enumerate(sorted((root / folder / "RGB").iterdir())):
            has = "rnt" if split == "train" else test.get(number, test.get(-1, "rnt"))
            has = queries if queries and split == "query" else has
            cells = [f"{folder}/{name}/{path.name}" if m in has else "" for m, name in zip("rnt", FOLDERS, strict=True)]
            rows.append([*cells, *path.name.split("_")[:2], "", split])
    with (root / "set.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["rgb", "nir", "tir", "id", "camera", "scene", "split"], *rows])
    return root / "set.csv"


def made(root: Path, output: Path, *overrides: str) -> Path:
    return untrained_run(root, output, "data.format=csv", *overrides)


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items 0 and 1 (the first identity, one camera) have TIR alone, items 4 and 5 no RGB; HDM."""
    folder = tmp_path_factory.mktemp("lacking")
    return made(table(folder / "data", test={0: "t", 1: "t", 4: "nt", 5: "nt"}), folder / "run", "model.head=hdm")


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs with an HDM and an SDTPS head on complete data."""
    folder = tmp_path_factory.mktemp("complete")
    root = table(folder / "data", test={})
    return {head: made(root, folder / head, f"model.head={head}") for head in ("hdm", "sdtps")}


@pytest.mark.parametrize("missing_as", ["absent", "zeros"])
def test_a_single_case_leaves_out_what_nothing_is_left_of(lacking: Path, missing_as: str) -> None:
    settings = [f"evaluate.missing_as={missing_as}"]
    config = override_config(load_checkpoint(lacking).config, settings)
    row = evaluate_checkpoint(lacking, config=config, progress=False, missing_cases=True)["missing"]["cases"]["nt"]
    config = override_config(config, ["evaluate.missing=[nir, tir]", "evaluate.rerank=true"])
    alone = evaluate_checkpoint(lacking, config=config, progress=False)
    for count in ("num_queries", "num_gallery", "num_unmatched"):
        assert alone[count] == row[count]
    assert alone["num_queries"] == ITEMS - 4
    assert alone["num_unmatched"] == 4  # the other camera of two identities has lost its counterpart
    assert row["feature"] == {name: alone["feature"][name] for name in row["feature"]}
    assert set(alone["reranked"]["feature"]) == set(alone["feature"])
    assert "4 of 24 queries have nothing but nir, tir and are left out" in alone["messages"]
    assert any("images of zeros" in line for line in alone["messages"]) == (missing_as == "zeros")


def test_metrics_by_camera_stand_beside_each_case(lacking: Path, tmp_path: Path) -> None:
    shown = call("test", lacking, "--by", "camera", "--missing", "all", "--rerank", "--out", tmp_path / "metrics.json")
    assert shown.exit_code == 0, shown.output
    written = json.loads((tmp_path / "metrics.json").read_text())
    groups = written["by"]["camera"]
    assert {camera: each["num_queries"] for camera, each in groups.items()} == {"cam1": 12, "cam2": 12}
    matched = sum(each["num_queries"] - each["num_unmatched"] for each in groups.values())
    for name, found in [(name, found) for name in written["feature"] for found in (written, written["reranked"])]:
        parts = [
            each["feature"][name]["mAP"] * (each["num_queries"] - each["num_unmatched"])
            for each in found["by"]["camera"].values()
        ]
        assert sum(parts) / matched == pytest.approx(found["feature"][name]["mAP"])
    case = written["missing"]["cases"]["nt"]
    assert sum(each["num_queries"] for each in case["by"]["camera"].values()) == case["num_queries"] == ITEMS - 4
    assert "| cam1 | 12 |" in shown.stdout
    assert "**by camera of the query, re-ranked**" in shown.stdout
    text = page({**written, "checkpoint": "last"})
    assert all(f"{title}**" in text for title in ("last", "lambda 0.3)", "by camera of the query, re-ranked"))
    assert "by camera of the query; columns: withheld" in shown.stdout
    last = (lacking / "last.safetensors").read_bytes()
    for out in (lacking / "last.safetensors", lacking / "config.yaml"):
        kept = call("test", lacking, "--out", out)
        assert (
            kept.exit_code,
            "is no output of trireid test: it is not replaced" in " ".join(kept.stderr.split()),
        ) == (
            2,
            True,
        )
    assert (lacking / "last.safetensors").read_bytes() == last
    assert call("test", lacking, "--out", tmp_path / "metrics.json").exit_code == 0  # its own file is replaced
    refused = call("test", lacking, "--by", "camera,scene")
    assert refused.exit_code == 2
    assert "choose among identity, camera\n" in refused.stderr


def test_a_run_that_withholds_trains_and_keeps_what_is_left(tmp_path: Path) -> None:
    root = table(tmp_path / "data", test={0: "r", 5: "r"})
    config = tiny_config(root, tmp_path / "run", "data.format=csv", "train.epochs=1", "evaluate.missing=[rgb]")
    metrics = train(config, progress=False)
    saved = load_features(tmp_path / "run")
    assert metrics["num_queries"] == len(saved.query.features) == ITEMS - 2
    assert saved.query.features.item.tolist() == list(range(ITEMS - 2))
    shown = [record.name for record in saved.query.records]
    everything = tiny_config(root, tmp_path / "other", "data.format=csv", "train.epochs=1")
    train(everything, progress=False)
    names = [record.name for record in load_features(tmp_path / "other").query.records]
    assert shown == [name for number, name in enumerate(names) if number not in (0, 5)]
    shown = call("report", tmp_path / "run")
    assert shown.exit_code == 0, shown.output
    assert "cannot be ranked" not in (tmp_path / "run" / "report.html").read_text()


def test_what_is_left_out_of_the_gallery_is_said(tmp_path: Path) -> None:
    run = made(table(tmp_path / "data", test={0: "t", 3: "t"}, queries="rnt"), tmp_path / "run")
    config = override_config(load_checkpoint(run).config, ["evaluate.missing=[tir]"])
    alone = evaluate_checkpoint(run, config=config, progress=False)
    assert (alone["num_queries"], alone["num_gallery"]) == (ITEMS, ITEMS - 2)
    assert "2 of 24 gallery items have nothing but tir and are left out" in alone["messages"]


def test_nothing_left_at_all_is_one_line(tmp_path: Path) -> None:
    run = made(table(tmp_path / "data", test={-1: "t"}), tmp_path / "run")
    config = override_config(load_checkpoint(run).config, ["evaluate.missing=[tir]"])
    with pytest.raises(InputError, match=r"all 24 queries have nothing but tir, .* nothing is left to rank"):
        evaluate_checkpoint(run, config=config, progress=False)


def test_a_case_without_items_is_a_row_of_dashes(tmp_path: Path) -> None:
    run = made(table(tmp_path / "data", test={-1: "rn"}), tmp_path / "run", "model.head=sdtps")
    shown = call("test", run, "--missing", "all", "--any-to-any", "--out", tmp_path / "figures.json")
    assert shown.exit_code == 0, shown.output
    written = json.loads((tmp_path / "figures.json").read_text())
    cases, mean = written["missing"]["cases"], written["missing"]["mean"]
    assert cases["rn"] == {
        "num_queries": 0,
        "num_gallery": 0,
        "num_unmatched": 0,
        "feature": {name: dict.fromkeys(cases["none"]["feature"][name]) for name in ("global", "head", "joint")},
    }
    assert written["missing"]["num_cases"] == {"global": 5, "head": 5, "joint": 5}
    rest = [each["feature"]["head"]["mAP"] for name, each in cases.items() if name not in ("none", "rn")]
    assert mean["head"]["mAP"] == pytest.approx(sum(rest) / 5)
    assert "| rn | 0 | 0 | - | - | - | - | - | - | - | - | - |" in shown.stdout
    assert "| mean of 5 |" in shown.stdout
    assert "`-`: no query or no gallery item is left; the mean is over the cases, of 6," in shown.stdout
    only_tir = written["any_to_any"]["subsets"].index("t")
    assert written["any_to_any"]["feature"]["global"]["mAP"][only_tir] == [None] * 7
    assert written["any_to_any"]["num_queries"][only_tir] == 0


def test_adaptive_fusion_names_the_cases_that_are_compared_without_it(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(table(tmp_path / "data", test={0: "nt", 5: "nt"}), tmp_path / "run", "model.head=sdtps")
    shown = call("test", run, "--missing", "all", "--any-to-any", "evaluate.adaptive_fusion=2")
    assert shown.exit_code == 0, shown.output
    # Without RGB, all items have the same modalities.
    line = "Note: without adaptive fusion, since some items lack a spectrum: global, head, joint in none, n, t\n"
    assert line in shown.stdout
    single = "no effect, since one spectrum is left, which has all the weight: global, head, joint in rn, rt, nt\n"
    assert single in shown.stdout
    # Fused: nt and each part of it with itself and nt (7), and r with r; 12 of 49 pairs share nothing.
    assert "global, head, joint in 29 of 37 rankings\n" in shown.stdout
    fused = made(table(tmp_path / "other", test={}), tmp_path / "fused", "evaluate.adaptive_fusion=2")
    open_embedder(fused)
    note = "note: the run is evaluated with evaluate.adaptive_fusion=2, which is no part of its embeddings"
    assert note in capsys.readouterr().err
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    measured = importlib.import_module("missing").measure(fused, matrix=False)
    assert "evaluate.adaptive_fusion=2, which is left out here" in capsys.readouterr().err
    config = load_checkpoint(fused).config
    found = {
        power: evaluate_checkpoint(
            fused, config=override_config(config, [f"evaluate.adaptive_fusion={power}"]), progress=False
        )["feature"]["global"]["mAP"]
        for power in (0, 2)
    }
    assert found[0] == pytest.approx(measured["aware"]["rnt"]["global"]["mAP"]) != pytest.approx(found[2])


def test_cells_that_share_no_block_have_no_figure(complete: dict[str, Path]) -> None:
    for head, run in complete.items():
        found = evaluate_checkpoint(run, progress=False, any_to_any=True)["any_to_any"]
        for name, values in found["feature"].items():
            subset_blocks = head == "hdm" and name != "global"  # blocks of several modalities are shared by all
            for own, row in zip(found["subsets"], values["mAP"], strict=True):
                for other, value in zip(found["subsets"], row, strict=True):
                    assert (value is None) == (not set(own) & set(other) and not subset_blocks), (
                        head,
                        name,
                        own,
                        other,
                    )


def test_zeros_are_images_that_every_cell_compares(complete: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "figures.md"
    settings = ("--missing", "all", "--any-to-any", "--out", out, "evaluate.missing_as=zeros")
    assert call("test", complete["sdtps"], *settings).exit_code == 0
    text = out.read_text()
    assert "| - |" not in text
    assert text.count("withheld modalities as images of zeros") == 1 + 2 * 3


def test_dashes_of_the_matrix_are_explained(complete: dict[str, Path]) -> None:
    shown = call("test", complete["hdm"], "--any-to-any").stdout
    assert shown.count("`-`: no query shares with a gallery item a modality that the feature compares") == 2
    assert "rows: modalities that queries may have" in shown
    assert "queries that count" not in shown  # all do


def test_queries_without_a_match_are_counted(lacking: Path) -> None:
    shown = call("test", lacking, "--missing", "all", "--any-to-any")
    assert shown.exit_code == 0, shown.output
    assert "| nt | 16 of 20 | 20 |" in shown.stdout
    assert "| none | 24 | 24 |" in shown.stdout
    assert "any to any, queries that count" in shown.stdout
    found = evaluate_checkpoint(lacking, progress=False, any_to_any=True)["any_to_any"]
    full, only_rgb = found["subsets"].index("rnt"), found["subsets"].index("r")
    assert found["num_unmatched"][full][full] == 0
    assert found["num_unmatched"][only_rgb][only_rgb] == 4
    assert found["num_unmatched"][full][only_rgb] == 4
    assert found["num_gallery"][only_rgb] == 20


@pytest.mark.parametrize(("gallery", "share"), [({-1: "t"}, "100.0 %"), ({**dict.fromkeys(range(6), "t")}, "25.0 %")])
def test_pairs_that_share_nothing_are_said(tmp_path: Path, gallery: dict[int, str], share: str) -> None:
    run = made(table(tmp_path / "data", test=gallery, queries="r"), tmp_path / "run", "model.head=hdm")
    messages = evaluate_checkpoint(run, progress=False)["messages"]
    meaning = "the order of the files decides" if share.startswith("100") else "they are ranked as unrelated"
    [said] = [line for line in messages if "share no modality" in line]
    assert said.startswith(f"{share} of the pairs of query and gallery share no modality (global): {meaning}")


def test_contradictions_and_an_unwritable_file_are_found_before_the_work(
    complete: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("evaluated in spite of an error")

    monkeypatch.setattr("trireid.cli.evaluate.run", never)
    (tmp_path / "file").touch()
    for arguments, said in (
        (("--missing", "all", "evaluate.missing=[rgb]"), "withholds rgb, but the tables"),
        (("--missing", "r", "--any-to-any"), "withholds rgb, but the tables"),
        (("--out", tmp_path / "file" / "figures.md"), "cannot write to the folder"),
        (("--out", tmp_path), "is a folder, not a file"),
    ):
        failed = call("test", complete["hdm"], *arguments)
        assert failed.exit_code == 2, failed.output
        assert said in failed.stderr
        assert [line.startswith("error: ") for line in failed.stderr.splitlines()].count(True) == 1
        assert "Traceback" not in failed.stderr


def test_what_the_run_itself_withholds_gives_way_to_the_tables(tmp_path: Path) -> None:
    run = made(table(tmp_path / "data", test={}), tmp_path / "run", "evaluate.missing=[tir]")
    shown = call("test", run, "--missing", "all")
    assert shown.exit_code == 0, shown.output
    assert "note: the run withholds tir (evaluate.missing); this test does not" in shown.stderr
    assert "| none | 24 | 24 |" in shown.stdout
