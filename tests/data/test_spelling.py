"""One spelling for one label, and words that are no names."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import write_csv, write_image, write_wmveid863

from trireid.data.check import check_dataset
from trireid.data.labels import LabelMap
from trireid.data.readers import read_index, scan
from trireid.data.spelling import label_key
from trireid.errors import DataError

CELLS = [("1", "c", "train"), ("2", "c", "train"), ("3", "c", "query"), ("3", "d", "gallery"), ("4", "d", "gallery")]


def write_cells(folder: Path, cells: list[tuple[str, ...]]) -> Path:
    """A CSV of (identity, camera, split), each row with an image of its own."""
    for number in range(len(cells)):
        write_image(folder / f"{number}.png")
    return write_csv(folder, [f"{number}.png,,,{i},{c},,{s}" for number, (i, c, s) in enumerate(cells)])


@pytest.mark.parametrize(
    ("one", "other"), [("1", "1.0"), ("1", "01"), ("007", "7.00"), ("+3", "3."), ("\uff11", "1"), ("e\u0301", "\xe9")]
)
def test_spellings_of_one_label(one: str, other: str) -> None:
    assert label_key(one) == label_key(other)


@pytest.mark.parametrize(
    ("one", "other"), [("1", "-1"), ("1.1", "1.10"), ("1e5", "100000"), ("a1", "A1"), ("0", "00a")]
)
def test_labels_that_differ(one: str, other: str) -> None:
    assert label_key(one) != label_key(other)


@pytest.mark.parametrize(
    ("row", "change", "said"),
    [
        (
            0,
            ("3.0", "c", "train"),
            r"the same id .*'3' \(1 in query, 1 in gallery\) and '3.0' \(1 in train\)",
        ),  # a leak
        (3, ("03", "d", "gallery"), r"the same id .*'03' \(1 in gallery\) and '3' \(1 in query\)"),
        (3, ("3", "c\u0301", "gallery"), None),
    ],
)
def test_two_spellings_in_one_column_are_a_fault_of_the_table(
    tmp_path: Path, row: int, change: tuple[str, ...], said: str | None
) -> None:
    table = write_cells(tmp_path, [*CELLS[:row], change, *CELLS[row + 1 :]])
    if said is None:
        assert scan("csv", table).faults == ()
        return
    with pytest.raises(DataError, match=said):
        scan("csv", table, skip_bad=True)  # leaving rows out would not say which one is meant


def test_floats_throughout_are_one_spelling_and_meet_the_model_that_knows_whole_numbers(tmp_path: Path) -> None:
    floats = [(f"{identity}.0", f"{'cd'.index(camera)}.0", split) for identity, camera, split in CELLS]
    index = scan("csv", write_cells(tmp_path, floats))
    assert LabelMap.from_records(index.train).identities == ("1.0", "2.0")
    label_map = LabelMap(("1", "2"), ("0", "01", "1"))
    assert [label_map.identity_index(record.identity) for record in index.train] == [0, 1]
    assert label_map.camera_index("0.0") == 0
    assert [label_map.camera_index(name) for name in ("1", "01", "1.0")] == [2, 1, -1]  # which one 1.0 is, nobody knows


def test_folders_of_one_number_are_a_fault(tmp_path: Path) -> None:
    write_image(write_wmveid863(tmp_path) / "train/02/vis/v1_n0_s012_0003.jpg")
    assert "mixed_spelling" in {fault.kind for fault in read_index("wmveid863", tmp_path).faults}


def test_minus_one_is_nobody_and_zero_is_somebody(tmp_path: Path) -> None:
    junk = [("-1", "c", "train"), ("-1.0", "c", "gallery"), ("-1", "d", "query"), ("0", "d", "gallery")]
    index = scan("csv", write_cells(tmp_path, [*CELLS, *junk[:1], *junk[2:]]))
    assert {record.identity for record in (*index.train, *index.query, *index.gallery)} == {"0", "1", "2", "3", "4"}
    assert "identity -1 marks junk: its triplets are left out (1 in train, 1 in query)" in index.notes[0]
    report = check_dataset("csv", index.root)
    assert report.ok
    assert any(line.startswith("note: identity -1 marks junk") for line in report.lines())


@pytest.mark.parametrize("word", ["nan", "None", "NULL", "n/a", "<NA>", "-"])
def test_words_for_nothing_are_no_names(tmp_path: Path, word: str) -> None:
    table = write_cells(tmp_path, [*CELLS, (word, "c", "gallery"), ("9", word, "gallery"), ("9", "-1", "gallery")])
    messages = [fault.message for fault in read_index("csv", table).faults]
    assert len(messages) == 3
    assert f"the id {word!r} is a placeholder for an empty cell; give the identity, or -1" in messages[0]
    assert f"the camera {word!r} is not a name; leave the cell empty if the camera is not known" in messages[1]
    assert "the camera '-1' is not a name" in messages[2]
