"""Scene patches of TNO: the reader of the tree, and the script that writes it."""

from __future__ import annotations

from data.trees import write_image
from trireid.data.readers import read_index, scan
from trireid.data.tno_scenes import SCENES


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
