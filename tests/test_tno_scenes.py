"""Scene patches of TNO: the reader of the tree, and the script that writes it."""

from __future__ import annotations

import hashlib
import importlib
import os
from errno import ENOSPC
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.trees import write_image
from trireid.data.readers import read_index, scan
from trireid.data.tno_scenes import SCENES
from trireid.errors import DataError, RunError

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
TREE = SHARED / "tno_scenes"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("tno_scenes")


def write_scenes(root, identities):
    for split, identity in identities:
        for camera in (1, 2):
            for folder in ("RGB", "NI", "TI"):
                write_image(root / split / folder / f"{identity:06d}_cam{camera}_0_00.png")
    return root


def test_the_scene_follows_from_the_identity_and_other_identities_are_refused(tmp_path):
    root = write_scenes(tmp_path, [("train", 38), ("train", 180), ("test", 1), ("test", 173), ("test", 174)])
    index = scan("tno_scenes", root)
    assert [record.scene for record in index.train[::2]] == ["Marne_03", "Kaptein_01"]
    assert [record.scene for record in index.query[::2]] == ["Kaptein_1654", "Marne_15", "Marne_01"]
    assert index.query_is_gallery
    assert sorted(number for identities in SCENES.values() for number in identities) == list(range(1, 199))
    write_scenes(root, [("test", 199)])
    faults = read_index("tno_scenes", root).faults
    assert [fault.kind for fault in faults] == ["bad_name"]
    assert "1 to 198" in faults[0].message


def tiny_stills(script, folder):
    """One scene of one cell: stills of 96 x 96 pixels, the visible one of the first capture shorter by 8 rows."""
    random = np.random.default_rng(0)
    stills = []
    for capture, name in ((1, "Marne_15"), (2, "square_with_houses")):
        (folder / name).mkdir(parents=True)
        for modality in ("rgb", "nir", "tir"):
            file = f"{name}/LWIR.bmp" if modality == "tir" else f"{name}/{modality}.bmp"
            height = 88 if (capture, modality) == (1, "rgb") else 96
            pixels = random.integers(0, 256, (height, 96), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / file)
            checksum = hashlib.sha256(pixels.tobytes()).hexdigest()
            stills.append(script.Still("Marne_15", capture, modality, file, (height, 96), checksum))
    return stills, [script.Cell("000144", "Marne_15", {1: (48, 48), 2: (46, 50)})]


def disk_is_full(*_):
    raise OSError(ENOSPC, "No space left on device")


def test_patches_are_cut_where_the_table_says_and_every_wrong_still_is_one_line(tmp_path, script, monkeypatch):
    stills, cells = tiny_stills(script, tmp_path / "TNO" / "Triclobs_images")
    out = tmp_path / "made" / "tree"
    assert script.convert(tmp_path / "TNO", out, stills=stills, cells=cells) == 24
    source = np.asarray(Image.open(tmp_path / "TNO/Triclobs_images/square_with_houses/LWIR.bmp")).astype(float)
    low, high = np.percentile(source, [0.5, 99.5])
    inverted = 255 - ((source - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    view = np.asarray(Image.open(out / "test/TI/000144_cam2_0_03.png"))  # shifted by (6, 4) from (46, 50)
    assert np.array_equal(view, inverted[20:84, 22:86])
    visible = np.asarray(Image.open(out / "test/RGB/000144_cam1_0_01.png"))  # from row 21 of the continued picture
    assert visible.shape == (64, 64)
    assert "TNO, Soesterberg" in (out / "CREDIT.txt").read_text()
    with pytest.raises(DataError, match="not an empty folder"):
        script.convert(tmp_path / "TNO", out, stills=stills, cells=cells)

    kept = tmp_path / "made" / "next.unfinished"
    kept.mkdir()
    with monkeypatch.context() as full:
        full.setattr(script, "write_text", disk_is_full)
        for place in (out / "CREDIT.txt" / "next", tmp_path / "made" / "next"):
            with pytest.raises(RunError, match="cannot write .* choose another --out"):
                script.convert(tmp_path / "TNO", place, stills=stills, cells=cells)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [kept.name, "tree"]

    folder = tmp_path / "TNO" / "Triclobs_images"
    (folder / stills[0].file).unlink()
    (folder / stills[1].file).unlink()
    os.mkfifo(folder / stills[1].file)
    (folder / stills[2].file).write_bytes(b"BM")
    Image.new("L", (96, 95)).save(folder / stills[3].file)
    Image.new("L", (96, 96)).save(folder / stills[4].file)
    with pytest.raises(DataError) as caught:
        script.convert(tmp_path / "TNO", tmp_path / "other", stills=stills, cells=cells)
    lines = str(caught.value).split("\n")
    words = (
        "missing",
        "cannot be read (it is a named pipe, not a regular file)",
        "cannot be read (cannot identify image file",
        "95 x 96 pixels, published are 96 x 96",
        "not those that TNO published",
    )
    assert all(word in line for word, line in zip(words, lines, strict=False)), lines
    assert lines[5].startswith("5 of 6 stills")
    assert not (tmp_path / "other").exists()
    with pytest.raises(DataError, match=r"no Triclobs_images.*figshare.* see docs/real_data\.md"):
        script.convert(tmp_path / "made", tmp_path / "other")


def test_a_smaller_still_has_the_mean_of_the_area_of_each_pixel(script):
    pixels = np.random.default_rng(1).integers(0, 256, (7, 10), dtype=np.uint8)
    expected = np.zeros((5, 4))
    for row in range(5):
        for column in range(4):
            for y in range(7):
                for x in range(10):
                    high = max(0.0, min((row + 1) * 7 / 5, y + 1) - max(row * 7 / 5, y))
                    wide = max(0.0, min((column + 1) * 10 / 4, x + 1) - max(column * 10 / 4, x))
                    expected[row, column] += pixels[y, x] * high * wide / (7 / 5 * 10 / 4)
    assert np.abs(script.shrink(pixels, (5, 4)) - expected).max() <= 0.5 + 1e-4


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "tno_source").is_dir(), reason="TNO's stills are not here (../shared/data)")
def test_the_published_stills_give_the_known_tree_twice(tmp_path, script):
    for name in ("one", "two"):
        script.main([str(SHARED / "tno_source"), "--out", str(tmp_path / name)])
    images = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").glob("*/*/*.png"))
    assert images == sorted(path.relative_to(TREE) for path in TREE.glob("*/*/*.png"))
    for name in images:
        made = tmp_path / "one" / name
        assert made.read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert np.array_equal(np.asarray(Image.open(made)), np.asarray(Image.open(TREE / name))), name


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "tno_source").is_dir(), reason="TNO's stills are not here (../shared/data)")
def test_the_cells_are_those_that_registration_finds(script):
    if not pytest.importorskip("cv2").__version__.startswith("5.0."):
        pytest.skip("the table was found with OpenCV 5.0; others may decide differently at a threshold")
    found = importlib.import_module("tno_registration").table(SHARED / "tno_source")
    assert found == script.CELLS.read_text(encoding="utf-8")
