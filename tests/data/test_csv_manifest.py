from __future__ import annotations

from pathlib import Path

import pytest
from trees import GOOD_ROWS, write_csv, write_csv_set, write_image

from trireid.data.readers import read_index, scan
from trireid.errors import DataError


def test_empty_cells_are_unknown(tmp_path: Path) -> None:
    index = scan("csv", write_csv_set(tmp_path))
    assert [record.name for record in index.train] == ["a/n2.png", "a/r0.png", "a/r1.png"]
    assert [source is not None for source in index.train[0].images] == [False, True, False]
    assert (index.train[0].identity, index.train[0].camera, index.train[0].scene) == ("x2", None, None)
    assert index.query[0].images[0].path == tmp_path / "a/r3.png"  # type: ignore[union-attr]
    assert index.query is index.gallery
    assert index.protocol.exclude == "camera"


def test_auto_rule_without_cameras_is_none(tmp_path: Path) -> None:
    write_csv_set(tmp_path)
    table = write_csv(tmp_path, [row.replace(",c1,", ",,").replace(",c2,", ",,") for row in GOOD_ROWS])
    assert scan("csv", table).protocol.exclude == "none"
    with pytest.raises(DataError, match="no query has a camera"):
        scan("csv", table, exclude="camera")


def test_cameras_of_one_side_alone_set_the_rule_and_an_explicit_rule_needs_both(tmp_path: Path) -> None:
    write_csv_set(tmp_path)
    write_image(tmp_path / "a/r5.png")
    sides = {"query": ("c1", ""), "gallery": ("", "c1")}
    for known, (query, gallery) in sides.items():
        rows = [*GOOD_ROWS[:3], f"a/r3.png,,,y1,{query},,query", f"a/r4.png,,,y1,{gallery},,gallery"]
        table = write_csv(tmp_path, rows)
        assert scan("csv", table).protocol.exclude == "camera"
        other = "gallery item" if known == "query" else "query"
        with pytest.raises(DataError, match=f"data.exclude is camera, but no {other} has a camera"):
            scan("csv", table, exclude="camera")


def test_query_and_gallery_apart_and_together(tmp_path: Path) -> None:
    write_csv_set(tmp_path)
    write_image(tmp_path / "a/r5.png")
    rows = [*GOOD_ROWS[:3], "a/r3.png,,,y1,c1,,query", "a/r4.png,,,y1,c2,,gallery", "a/r5.png,,,y1,c3,,test"]
    index = scan("csv", write_csv(tmp_path, rows))
    assert [record.name for record in index.query] == ["a/r3.png", "a/r5.png"]
    assert [record.name for record in index.gallery] == ["a/r4.png", "a/r5.png"]


def test_columns_in_any_order_and_byte_order_mark(tmp_path: Path) -> None:
    write_csv_set(tmp_path)
    rows = ["train,x1,a/r0.png,,,,", "test,y1,a/r3.png,,,,", "test,y1,a/r4.png,,,,"]
    table = write_csv(tmp_path, rows, header="\ufeffsplit,id,rgb,nir,tir,camera,scene")
    assert [record.identity for record in scan("csv", table).gallery] == ["y1", "y1"]


@pytest.mark.parametrize(
    "header",
    ["rgb,nir,tir,id,camera,scene,split,weather", "rgb,nir,tir,id,camera,split", "rgb,rgb,tir,id,camera,scene,split"],
)
def test_header_must_be_exact(tmp_path: Path, header: str) -> None:
    with pytest.raises(DataError, match="it must have exactly rgb,nir,tir,id,camera,scene,split"):
        scan("csv", write_csv(tmp_path, GOOD_ROWS, header=header), skip_bad=True)


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ("a/r0.png,,,,c1,,train", "bad_row", "line 7: the id is empty"),
        ("a/r4.png,,,z,c1,,val", "bad_row", "split 'val' is none of train, query, gallery, test"),
        ("a/r4.png,,,z,c1", "bad_row", "5 cells, but the header has 7"),
        (",,,z,c1,,train", "no_modality", "rgb, nir and tir are all empty"),
        ("a/none.png,,,z,c1,,train", "missing_modality", "no file"),
        ("a/r0.png,,,x1,c9,,train", "duplicate_name", "a/r0.png is already in the train split"),
    ],
)
def test_bad_rows(tmp_path: Path, row: str, kind: str, message: str) -> None:
    write_csv_set(tmp_path)
    table = write_csv(tmp_path, [*GOOD_ROWS, row])
    faults = read_index("csv", table).faults
    assert [fault.kind for fault in faults] == [kind]
    assert message in faults[0].message
    assert len(scan("csv", table, skip_bad=True).train) == 3


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("rgb;nir;tir;id;camera;scene;split", "without a comma between them; it"),
        ("rgb,NIR,tir,pid,camera,scene,split", r"split \(without nir, id; unknown are NIR, pid\); it"),
        ("rgb,nir,tir,id,camera,scene,split,note", r"note \(unknown are note\); it"),
        ("rgb,rgb,nir,tir,id,camera,scene,split", "split, one of them twice; it"),
    ],
)
def test_what_is_wrong_with_a_header_is_named(tmp_path: Path, header: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        scan("csv", write_csv(tmp_path, GOOD_ROWS, header=header))


def test_no_file_a_folder_an_empty_file_and_no_text(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "none.csv", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(DataError, match=f"{what}; set data.root to the CSV file itself"):
            scan("csv", path)
    empty = tmp_path / "empty.csv"
    empty.touch()
    with pytest.raises(DataError, match="the file is empty; it must have exactly"):
        scan("csv", empty)
    empty.write_bytes(b"\xff\xfe\x00rgb")
    with pytest.raises(DataError, match="cannot be read as a CSV file in UTF-8"):
        scan("csv", empty)


def test_a_split_without_rows(tmp_path: Path) -> None:
    write_csv_set(tmp_path)
    with pytest.raises(DataError, match="no usable triplet in the query split"):
        scan("csv", write_csv(tmp_path, GOOD_ROWS[:3]))
