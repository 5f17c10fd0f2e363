from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import write_csv, write_csv_set, write_rgbnt201, write_wmveid863

from trireid.data.check import check_dataset
from trireid.data.records import Fault
from trireid.errors import DataError


def test_counts_beside_the_published_ones(tmp_path: Path) -> None:
    report = check_dataset("rgbnt201", write_rgbnt201(tmp_path))
    assert report.ok
    train = report.splits[0]
    assert (train.triplets, train.identities, train.cameras, train.scenes) == (4, 2, 2, 0)
    assert (train.available, train.published) == ((4, 4, 4), (3951, 171))
    lines = report.lines()
    assert "query and gallery are one set" in lines[0]
    assert lines[1].split()[:4] == ["split", "triplets", "published", "identities"]
    assert lines[2].split() == ["train", "4", "3951", "2", "171", "2", "0", "4", "4", "4"]
    differ = "no fault found, but the counts differ from the published ones: "
    train = "train has 4 triplets of 2 identities (published: 3951 of 171)"
    assert lines[-1] == f"{differ}{train}; query has 4 triplets of 2 identities (published: 836 of 30)"
    splits = (replace(each, published=(each.triplets, each.identities)) for each in report.splits)
    equal = replace(report, splits=tuple(splits))
    assert equal.lines()[-1] == "no fault found"


def test_availability(tmp_path: Path) -> None:
    report = check_dataset("wmveid863", write_wmveid863(tmp_path / "set"))
    assert report.splits[2].available == (4, 3, 4)
    assert report.splits[2].published is None
    assert "-" in report.lines()[4].split()
    assert check_dataset("csv", write_csv_set(tmp_path / "csv")).splits[0].available == (2, 2, 2)


def test_every_fault_is_listed(tmp_path: Path) -> None:
    root = write_rgbnt201(tmp_path)
    (root / "train_171/TI/000001_cam1_0_01.jpg").unlink()
    for name in ("000003_cam1_0_01.jpg", "000003_cam2_0_01.jpg"):
        (root / "train_171/RGB" / name).write_bytes(b"")
    report = check_dataset("rgbnt201", root)
    assert not report.ok
    assert report.splits[0].triplets == 1
    lines = report.lines()
    assert "3 faults: 1 missing_modality, 2 unreadable_image" in lines
    assert sum("an empty file" in line for line in lines) == 2
    assert report.lines(max_faults=1)[-1] == "  unreadable_image: and 1 more"


def test_a_missing_tree_is_a_report_and_an_unknown_format_an_error(tmp_path: Path) -> None:
    report = check_dataset("msvr310", tmp_path / "nowhere")
    assert [fault.kind for fault in report.faults] == ["missing_split"]  # once, not once a split
    with pytest.raises(DataError, match="use one of"):
        check_dataset("none", tmp_path)


def test_depths_ranges_and_orientations_are_reported(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    values = np.linspace(28815, 31115, 200).reshape(10, 20).astype(np.uint16)
    rows = []
    for number, split in enumerate(["train", "train", "train", "test", "test"]):
        noise = np.random.default_rng(number).integers(0, 256, (10, 20, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / f"r{number}.jpg", exif=exif if number < 2 else Image.Exif())
        Image.fromarray(values + number).save(tmp_path / f"t{number}.{'tif' if number == 4 else 'png'}")
        rows.append(
            f"r{number}.jpg,,t{number}.{'tif' if number == 4 else 'png'},{split}{number // 5},c{number},,{split}"
        )
    Image.new("L", (1, 1), 7).save(tmp_path / "t2.png")
    report = check_dataset("csv", write_csv(tmp_path, rows))
    low, high = np.percentile(np.stack([values, values + 1]), (0.1, 99.9))
    assert report.images == (
        "rgb: 5 images: 5 JPEG uint8; 2 rotated upright by their orientation (tag 8: 2)",
        "tir: 5 images: 3 PNG uint16, 1 PNG uint8, 1 TIFF uint16",
        f"  tir: 4 images of more than 8 bits, mapped to 256 levels from the range {low:.7g} to {high:.7g} "
        "(0.1 and 99.9 percentiles of the training images)",
    )
    assert [line.split(" images ")[0] for line in report.warnings] == ["tir: 1 of 5", "tir: 1 of 5", "tir: 1 of 5"]
    assert "have 8 bits and are used as they are" in report.warnings[0]
    assert report.warnings[1].endswith(f"have the same value everywhere, the first is {tmp_path / 't2.png'}")
    assert report.warnings[2].endswith(f"are smaller than 8 x 8 pixels, the first is {tmp_path / 't2.png'}")
    assert f"warning: {report.warnings[0]}" in report.lines()
    assert report.ok


def test_a_fault_is_one_line_whatever_the_name_of_its_file():
    fault = Fault("bad_name", Path("a\nb"), "a\nb\x1b[31m.jpg: rename it" + "x" * 10_000)
    assert fault.message.isprintable()
    assert len(fault.message) <= 2000
