"""What the page and the pictures show of a model: its own selection, on any orientation, or why there is none."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_run import untrained_run, write_tree
from trireid.data.records import ImageSource
from trireid.errors import InputError, RunError
from trireid.report.items import named_records, open_model, prepare, select_items, spread_records
from trireid.report.maps import item_maps, statistics_table
from trireid.report.page import write_report
from trireid.report.run_folder import evaluated_records, read_run, saved_features_of
from trireid.train.checkpoint import load_checkpoint
from trireid.visualize.patches import PatchState, patch_states

SLIMMING = "model.slimming=[{after_block: 1, keep_ratio: 0.5, guidance: cross}]"
ORIENTATIONS = {"portrait": (32, 16), "landscape": (16, 32)}


@pytest.fixture(scope="module", params=["portrait", pytest.param("landscape", marks=pytest.mark.slow)])
def run_dir(request, tmp_path_factory):
    """An untrained run with a cut inside the ViT and SDTPS, of persons or vehicles."""
    folder = tmp_path_factory.mktemp(request.param)
    size = ORIENTATIONS[request.param]
    root = write_tree(folder / "images", identities=3, size=size)
    return untrained_run(root, folder / "run", f"data.image_size={list(size)}", "model.backbone.depth=2", SLIMMING)


@pytest.fixture
def run_copy(run_dir, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(run_dir, tmp_path / "run")


def words_of(page):
    return " ".join(
        re.sub(r"<style.*?</style>|<[^>]+>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL).split()
    )


def pixels_of(picture):
    data = base64.b64decode(picture.uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_maps_on_the_page_show_the_models_own_choice(run_dir):
    run = read_run(run_dir)
    opened = open_model(run)
    given = prepare(opened, evaluated_records(run)[:2], [])
    item = select_items(opened, given)[1]
    with torch.inference_mode():
        out = opened.model(given.images[1:], present=given.present[1:], camera=given.camera[1:])
    assert set(item.selection) == {"block1", "sdtps"}
    assert torch.equal(item.selection["sdtps"].mask, out.selection["sdtps"].mask)
    maps = item_maps(item, size=opened.size, heading="")
    names = ["image", "block1 scores", "block1 kept", "sdtps scores", "sdtps kept", "sdtps slot weight"]
    assert [row.name for row in maps.rows] == names
    states = patch_states(item.selection["sdtps"])[0]
    for modality in range(3):
        image, kept = pixels_of(maps.rows[0].pictures[modality]), pixels_of(maps.rows[4].pictures[modality])
        rows, columns = opened.model.backbone.grid
        height, width = image.shape[0] // rows, image.shape[1] // columns
        for patch, state in enumerate(states[modality].tolist()):
            y, x = (patch // columns) * height, (patch % columns) * width
            inside = np.s_[y + 12 : y + height - 12, x + 12 : x + width - 12]  # away from the borders, which JPEG blurs
            alike = np.abs(image[inside] - kept[inside]).mean() < 12
            assert alike == (state == PatchState.KEPT)
        assert maps.rows[4].captions[modality] == "2 of 8"


def test_the_page_has_maps_and_statistics(run_dir):
    text = words_of(write_report(run_dir))
    assert "block1 kept" in text
    assert "sdtps slot weight" in text
    assert "overlap rgb-nir" in text
    assert "No maps" not in text
    header, lines = statistics_table(select_items(open_model(read_run(run_dir)), inputs(run_dir)))
    assert header[0] == "kept"
    assert [line[:2] for line in lines] == [("block1", "50.0"), ("sdtps", "25.0")]


def inputs(run_dir):
    run = read_run(run_dir)
    return prepare(open_model(run), evaluated_records(run), [])


def test_a_model_without_selection_says_so(tmp_path):
    root = write_tree(tmp_path / "images", identities=3)
    page = words_of(write_report(untrained_run(root, tmp_path / "run", "model.head=none")))
    assert "This model selects no patches" in page
    assert "Rank list" in page


def test_without_weights_or_images_the_rest_is_drawn(run_copy):
    records = (run_copy / "records.json").read_text()
    (run_copy / "records.json").write_text(records.replace("/images/", "/moved/"))
    page = words_of(write_report(run_copy))
    assert "cannot be read" in page
    assert "data.root=" in page
    assert "average precision" in page
    (run_copy / "last.safetensors").unlink()
    assert "holds no last.safetensors" in words_of(write_report(run_copy))


def test_one_image_that_is_missing_leaves_one_triplet_out(run_copy):
    content = json.loads((run_copy / "records.json").read_text())
    content["query"][0]["images"][1]["path"] = "gone.png"
    (run_copy / "records.json").write_text(json.dumps(content))
    page = words_of(write_report(run_copy))
    assert f"{content['query'][0]['name']} is left out of the maps: gone.png" in page
    assert "sdtps kept" in page


def test_many_missing_images_are_named_in_part(run_dir):
    run, notes = read_run(run_dir), []
    records = list(evaluated_records(run))
    broken = [replace(each, images=(ImageSource(Path("gone.png")), *each.images[1:])) for each in records[:5]]
    given = prepare(open_model(run), [*broken, *records[5:]], notes)
    assert len(given) == len(records) - 5
    assert [note.split(":")[0] for note in notes[:3]] == [f"{each.name} is left out of the maps" for each in broken[:3]]
    assert notes[3:] == ["2 more triplets are left out of the maps for want of their images"]


def test_moved_images_are_found_by_the_name_of_their_record(run_copy):
    records = (run_copy / "records.json").read_text()
    root = load_checkpoint(run_copy).config.data.root
    (run_copy / "records.json").write_text(records.replace("/images/", "/moved/"))
    run = read_run(run_copy, overrides=[f"data.root={root}"])
    assert all(source.path.exists() for source in run.saved.query.records[0].images)
    assert run.saved.gallery is run.saved.query


def test_a_checkpoint_alone_has_a_page_and_with_its_data_all_of_it(run_dir, tmp_path):
    shutil.copy(run_dir / "last.safetensors", tmp_path / "alone.safetensors")
    (tmp_path / "alone.report.json").write_text(json.dumps({"used": {"a": "b"}, "ignored": {}, "notes": ["assumed"]}))
    page = write_report(tmp_path / "alone.safetensors")
    assert page == tmp_path / "alone.html"
    text = words_of(page)
    assert "--evaluate" in text
    assert "1 keys of the file were used" in text
    assert "no final metrics" in text  # those inside a checkpoint are of the split that chose it
    assert "sdtps kept" in text  # its data set is where its settings say
    evaluated = read_run(tmp_path / "alone.safetensors", evaluate=True)
    assert torch.equal(
        saved_features_of(evaluated).query.features.features["joint"],
        saved_features_of(read_run(run_dir)).query.features.features["joint"],
    )
    text = words_of(write_report(tmp_path / "alone.safetensors", evaluate=True))
    assert "average precision" in text
    assert "Joint feature of epoch 0: mAP" in text
    with pytest.raises(RunError, match="no saved features to draw: --evaluate"):
        saved_features_of(read_run(tmp_path / "alone.safetensors"))


def test_records_are_chosen_by_identity_or_name_and_spread_over_identities(run_dir):
    records = evaluated_records(read_run(run_dir))
    assert [record.identity for record in spread_records(records, 2)] == ["000100", "000101"]
    assert len(spread_records(records, 99)) == 3
    assert len(named_records(records, ["000101"], 2)) == 2
    name = records[5].name
    assert [record.name for record in named_records(records, [name], 3)] == [name]
    with pytest.raises(InputError, match="the nearest are .*000101"):
        named_records(records, ["00101"], 1)
