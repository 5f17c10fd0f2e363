"""Items from tables and folders: what is read, what is reported, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trireid.embedding.item_folder import read_item_folder
from trireid.embedding.item_inputs import read_inputs
from trireid.embedding.item_table import read_item_table
from trireid.embedding.items import Item
from trireid.errors import DataError, InputError


def table(folder: Path, text: str) -> Path:
    path = folder / "items.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_gives_items_with_all_that_is_known(tmp_path):
    path = table(
        tmp_path,
        "RGB,tir,id,camera,scene,time,left,top,right,bottom,tir_left,tir_top,tir_right,tir_bottom,quality,Colour,box,metadata\n"
        'a.jpg,t.png,7,c1,,2026-11-26T00:00:00Z,1,2,3,4,5,6,7,8,0.5,red,,"{""n"": 1}"\n'
        ',/abs/t.png,-1,,s,,,,,,,,,,,,"{""tir"": [0, 0, 2, 2]}",\n',
    )
    found = read_item_table(path)
    box, tir = (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)
    first = Item(
        {"rgb": str(tmp_path / "a.jpg"), "tir": str(tmp_path / "t.png")},
        key="a.jpg", identity="7", camera="c1", time=1795651200.0, quality=0.5,
        box={"rgb": box, "nir": box, "tir": tir}, metadata={"n": 1, "Colour": "red"},
    )  # fmt: skip
    assert found.items == (first, Item({"tir": "/abs/t.png"}, key="/abs/t.png", scene="s", box={"tir": (0, 0, 2, 2)}))
    assert found.notes == (f"{path}: the columns Colour become metadata",)


def test_several_objects_of_one_frame_get_keys_of_their_own(tmp_path):
    found = read_item_table(table(tmp_path, "rgb;left;top;right;bottom;\nf.jpg;0;0;2;2;\nf.jpg;2;0;4;2;x\n"))
    assert [item.key for item in found.items] == ["f.jpg:2", "f.jpg:3"]
    assert [note.partition(": ")[2] for note in found.notes] == [
        "its cells are separated by a semicolon",
        "a column without a name is not read",
        "images occur more than once, and there is no column key: keys end in the number of the line",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("rgb,nir\n", "no row"),
        ("red,green\na,b\n", "at least one of rgb, nir, tir"),
        ("id,camera\na,b\n", "none of the columns rgb, nir and tir"),
        ("rgb,id,identity\na,b,c\n", "the same"),
        ("rgb,rgb\na,b\n", "twice"),
        ("rgb,nir\na\n", "line 2: 1 cells"),
        ("rgb,nir\n,\nx,\ny,,\n", "line 4: 3 cells"),
        ("rgb,id\n,7\n", "line 2: rgb, nir and tir are all empty"),
        ("rgb,id\na,nan\n", "line 2: the id 'nan' is a placeholder"),
        ("rgb,time\na,yesterday\n", "line 2: the time 'yesterday'"),
        ("rgb,left\na,1\n", "line 2: a box needs all of"),
        ("rgb,left,top,right,bottom\na,1,1,x,3\n", "line 2: the right 'x'"),
        ("rgb,left,top,right,bottom\na,5,1,2,3\n", "line 2: the box .* left < right"),
        ("rgb,quality\na,-1\n", "line 2: the quality"),
        ("rgb,box\na,7\n", "line 2: a box is 7"),
        ("rgb,metadata\na,[1]\n", "line 2: the metadata"),
        ("rgb,metadata\na,{\n", "line 2: "),
        ("rgb,key\na,k\nb,l\nc,k\n", "the key 'k' is in the lines 2, 4"),
        ("rgb,key\na,k\x1b[2J\n", "cannot be printed"),
    ],
)
def test_wrong_tables_are_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(DataError, match=words) as caught:
        read_item_table(table(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def tree(folder: Path, *files: str) -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros((2, 2), np.uint8)) if path.suffix == ".npy" else path.touch()
    return folder


def test_a_folder_gives_items_by_the_names_of_files(tmp_path):
    found = read_item_folder(
        tree(tmp_path, "RGB/a.jpg", "RGB/s/b.png", "ti/a.npy", "ti/s/b.npy", "ti/c.tif", "ti/x.txt")
    )
    assert [(item.key, sorted(item.images)) for item in found.items] == [
        ("a", ["rgb", "tir"]), ("c", ["tir"]), ("s/b", ["rgb", "tir"]),
    ]  # fmt: skip
    assert [note.partition(": ")[2][:20] for note in found.notes] == ["1 other files are no", "1 of 3 items have no"]


def test_inputs_with_equal_names_are_told_apart_by_theirs(tmp_path):
    folders = [tree(tmp_path / name, "rgb/17.jpg") for name in ("cam1", "cam2")]
    with pytest.raises(InputError, match=f"{folders[0]} and {folders[1]} both have the item '17'.*--prefix-keys"):
        read_inputs(folders)
    assert [item.key for item in read_inputs(folders, prefix_keys=True).items] == ["cam1/17", "cam2/17"]
    with pytest.raises(InputError, match="give different inputs"):
        read_inputs([folders[0], folders[0]], prefix_keys=True)
    for path, words in ((tmp_path / "none", "no such file or folder"), (folders[0] / "rgb/17.jpg", "by --rgb, --nir")):
        with pytest.raises(DataError, match=words):
            read_inputs([path])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("train/a.jpg",), "it has train, and none for a modality"),
        (("rgb/a.txt",), "no image in rgb"),
        (("rgb/a.jpg", "RGB/a.jpg"), "RGB and rgb are both for rgb"),
        (("rgb/a.jpg", "rgb/a.png"), "same name without ending"),
        (("rgb/a.jpg", "nir/b.jpg"), "has a partner"),
        ((), "no sub-folder"),
    ],
)
def test_wrong_folders_are_refused_in_one_line(tmp_path, files, words):
    with pytest.raises(DataError, match=words) as caught:
        read_item_folder(tree(tmp_path, *files))
    assert "\n" not in str(caught.value)
