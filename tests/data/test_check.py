from __future__ import annotations

from pathlib import Path

import pytest
from trees import write_csv_set, write_rgbnt201, write_wmveid863

from trireid.data.check import check_dataset
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
    assert lines[-1] == "no fault found"


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
