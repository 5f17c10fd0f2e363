"""One image under several names: the same file, and the same bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from trees import write_csv, write_image, write_rgbnt100

from trireid.data.check import check_dataset
from trireid.data.duplicates import image_contents, same_items
from trireid.data.labels import copied_queries, rank_labels
from trireid.data.readers import read_index, scan
from trireid.data.records import ImageSource, Record

ROWS = ["a,,,1,,,train", "b,,,2,,,train", "c,d,,3,,,query", "e,f,,3,,,gallery", "g,h,,4,,,gallery"]


def write_rows(folder: Path, *more: str) -> Path:
    """A CSV whose cells are names of images without the suffix; those that are not there are made."""
    rows = []
    for row in (*ROWS, *more):
        cells = row.split(",")
        paths = [f"{cell}.png" if cell else "" for cell in cells[:3]]
        for path in filter(None, paths):
            if not (folder / path).exists():
                write_image(folder / path)
        rows.append(",".join([*paths, *cells[3:]]))
    return write_csv(folder, rows)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("c,i,,4,,,gallery", "c.png: one file is used for identities 3, 4 (triplets c.png); give each its own image"),
        ("a,,,3,,,gallery", "a.png: one file is used for identities 1, 3 (triplets a.png)"),  # train and test
        ("i,i,,4,,,gallery", "i.png: one file is used for rgb and nir (triplets i.png)"),
        (",c,,3,,,gallery", "c.png: one file is used for rgb and nir (triplets c.png)"),
        ("link,i,,4,,,gallery", "one file is used for identities 3, 4"),
    ],
)
def test_one_file_of_several_meanings(tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "c.png")
    table = write_rows(tmp_path, row)
    faults = [fault for fault in read_index("csv", table).faults if fault.kind == "shared_image"]
    assert len(faults) == 1
    assert said in faults[0].message
    left = scan("csv", write_rows(tmp_path, row, "k,l,,4,,,query", "m,n,,5,,,train", "o,,,5,,,train"), skip_bad=True)
    shared = {path.name for path in (tmp_path / "c.png", tmp_path / "i.png") if said.startswith(path.name)}
    used = {
        source.path.name for record in (*left.train, *left.query, *left.gallery) for source in record.images if source
    }
    assert not used & shared


def test_strips_are_one_file_on_purpose(tmp_path: Path) -> None:
    assert read_index("rgbnt100", write_rgbnt100(tmp_path)).faults == ()


def test_equal_bytes_of_two_identities_are_a_fault_and_of_one_a_note(tmp_path: Path) -> None:
    table = write_rows(tmp_path, "copy1,copy2,,3,,,gallery", "other1,other2,,5,,,gallery")
    for name, source in {"copy1": "c", "copy2": "d"}.items():
        shutil.copy(tmp_path / f"{source}.png", tmp_path / f"{name}.png")
    report = check_dataset("csv", table)
    assert report.ok
    assert report.notes == (
        "1 triplets hold the same bytes as another triplet of their identity: a ranking treats them as one item, and "
        "training sees them more often",
    )
    for name, source in {"other1": "g", "other2": "h"}.items():
        shutil.copy(tmp_path / f"{source}.png", tmp_path / f"{name}.png")
    [fault] = check_dataset("csv", table).faults
    assert fault.kind == "copied_image"
    assert "the same bytes are used for identities 4, 5; keep only the triplet" in fault.message
    assert {record.identity for record in scan("csv", table, skip_bad=True).gallery} == {"3"}


def test_a_placeholder_of_several_identities_is_a_note(tmp_path: Path) -> None:
    table = write_rows(tmp_path, "x,y,,5,,,gallery")
    for name in ("f", "h", "y"):
        write_image(tmp_path / f"{name}.png", value=0)
    report = check_dataset("csv", table)
    assert report.ok
    assert "1 images hold the same bytes under several identities; if they are placeholders" in report.notes[0]


def record(name: str, identity: str, *paths: Path | None) -> Record:
    return Record(name, tuple(None if path is None else ImageSource(path) for path in paths), identity)


def test_copies_and_parts_of_an_item_are_the_item_itself(tmp_path: Path) -> None:
    one, two, three = (write_image(tmp_path / f"{name}.png") for name in "abc")
    copy, linked = tmp_path / "copy.png", tmp_path / "linked.png"
    shutil.copy(one, copy)
    os.link(one, linked)
    gallery = (record("whole", "1", one, two, None), record("stranger", "2", one, None, None))
    query = (
        record("copied", "1", copy, None, None),
        record("linked", "1", linked, two, None),
        record("part", "1", None, two, None),
        record("other pair", "1", one, three, None),  # the same rgb with another nir is another item
        record("lost", "1", tmp_path / "none.png", None, None),
    )
    query_labels, gallery_labels = rank_labels(query, gallery)
    assert [item == gallery_labels.item[0] for item in query_labels.item] == [True, True, True, False, False]
    assert gallery_labels.item[0] != gallery_labels.item[1]
    assert copied_queries(query, gallery, query_labels=query_labels, gallery_labels=gallery_labels) == 3
    assert copied_queries(gallery, gallery, query_labels=gallery_labels, gallery_labels=gallery_labels) == 0
    assert same_items([]) == {}


def test_only_files_of_one_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path, content in zip(paths, (b"12", b"34", b"5"), strict=True):
        path.write_bytes(content)
    opened: list[Path] = []
    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args: (opened.append(path), plain(path, *args))[1])
    contents = image_contents([*map(ImageSource, paths), None])
    assert (len(set(contents.values())), sorted(opened)) == (3, paths[:2])
