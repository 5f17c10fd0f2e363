from __future__ import annotations

from collections.abc import Callable
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


def test_further_columns_are_kept_with_the_items_that_have_a_value(tmp_path: Path) -> None:
    write_csv_set(tmp_path)
    rows = [f"{row},{('rain', '')[number % 2]}" for number, row in enumerate(GOOD_ROWS)]
    index = scan("csv", write_csv(tmp_path, rows, header="rgb,nir,tir,id,camera,scene,split,Weather"))
    kept = [record.columns for record in (*index.train, *index.query)]
    assert set(kept) == {(("Weather", "rain"),), ()}


@pytest.mark.parametrize(
    "header",
    ["rgb,nir,tir,id,camera,scene,split,Split", "rgb,nir,tir,id,camera,split", "rgb,rgb,tir,id,camera,scene,split"],
)
def test_header_must_have_each_column_once(tmp_path: Path, header: str) -> None:
    with pytest.raises(DataError, match="it must have rgb,nir,tir,id,camera,scene,split, each once"):
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
        ("rgb,nir,tir,id,camera,scene,split,", "one of them twice or without a name; it"),
        ("rgb,rgb,nir,tir,id,camera,scene,split", "split, one of them twice or without a name; it"),
        ("rgb,nir,tir,id,camera,scene,split,Identity", "stands beside `id`"),
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
    with pytest.raises(DataError, match="the file is empty; it must have rgb"):
        scan("csv", empty)
    empty.write_bytes(b"\xff\xfe\x00rgb")
    with pytest.raises(DataError, match="cannot be read as a CSV file in UTF-8"):
        scan("csv", empty)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda text: text.replace(",", ";"), "its cells are separated by a semicolon"),
        (lambda text: text.replace(",", "\t"), "its cells are separated by a tab"),
        (lambda text: text.replace("rgb,nir", "RGB,Nir"), "the columns RGB, Nir are read as rgb, nir"),
        (lambda text: text.replace(",train", ",Train"), "the splits Train are read in lower case"),
        (lambda text: "\ufeff" + text.replace("\n", "\r\n"), None),
    ],
)
def test_other_ways_of_writing_are_read_and_said(
    tmp_path: Path, change: Callable[[str], str], note: str | None
) -> None:
    table = write_csv_set(tmp_path)
    plain = scan("csv", table)
    table.write_text(change(table.read_text(encoding="utf-8")), encoding="utf-8", newline="")
    index = scan("csv", table)
    assert (index.train, index.gallery) == (plain.train, plain.gallery)
    assert index.notes == (() if note is None else (f"{table}: {note}",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("rgb,nir".encode("utf-16"), "it is written in UTF-16; save it as UTF-8"),
        ("rgb,nir\ncaf\xe9".encode("latin-1"), "byte 0xe9 in line 2 is not UTF-8 .*; save it as UTF-8"),
        (b"rgb,nir\n\0", "line 2 holds a NUL byte"),
        (b"rgb;nir;id", r"columns rgb,nir,id \(a semicolon between them\) \(without tir, camera, scene, split\)"),
        (b'rgb,nir,tir,id,camera,scene,split\na,b,"c', "line 2: unexpected end of data"),
    ],
)
def test_files_that_are_no_such_table(tmp_path: Path, content: bytes, said: str) -> None:
    table = tmp_path / "set.csv"
    table.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        scan("csv", table)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (r"a\r3.png,,,z,c1,,train", r"no file a\r3.png; its folders are separated by \; on this system write /"),
        ("a/r4.png,,,z,c\x1b[31m,,train", r"the camera 'c\x1b[31m' holds a character that cannot be printed"),
        ("a\x07/r4.png,,,z,c1,,train", r"the rgb 'a\x07/r4.png' holds a character that cannot be printed"),
        (f"{'x' * 5000}.png,,,z,c1,,train", "no file"),
        ("a/r4.png,,,z,c1,,val", "of train, query, gallery, test; to hold out training identities, set data.val_ids"),
    ],
)
def test_what_a_cell_must_not_hold_is_named(tmp_path: Path, row: str, said: str) -> None:
    write_csv_set(tmp_path)
    [fault] = read_index("csv", write_csv(tmp_path, [*GOOD_ROWS, row])).faults
    assert said in fault.message
    assert len(fault.message) < 600


def test_a_split_without_rows(tmp_path: Path) -> None:
    write_csv_set(tmp_path)
    with pytest.raises(DataError, match="no usable triplet in the query split"):
        scan("csv", write_csv(tmp_path, GOOD_ROWS[:3]))
