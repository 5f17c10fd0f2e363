from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from trees import (
    write_csv_set,
    write_image,
    write_msvr310,
    write_rgbnt100,
    write_rgbnt201,
    write_wmveid863,
)

from trireid.data import msvr310, rgbnt100, rgbnt201, wmveid863
from trireid.data.readers import FORMATS, read_index, scan
from trireid.data.records import ImageSource
from trireid.errors import DataError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
WRITERS: dict[str, Callable[[Path], Path]] = {
    "rgbnt201": write_rgbnt201,
    "rgbnt100": write_rgbnt100,
    "msvr310": write_msvr310,
    "wmveid863": write_wmveid863,
    "csv": write_csv_set,
}


def kinds(format: str, root: Path, *, verify_pixels: bool = False) -> list[str]:
    return [fault.kind for fault in read_index(format, root, verify_pixels=verify_pixels).faults]


@pytest.mark.parametrize(("train", "suffix"), [("train_171", ".jpg"), ("train", ".png"), ("train", ".jpeg")])
def test_rgbnt201_reads_both_folder_names_and_all_suffixes(tmp_path: Path, train: str, suffix: str) -> None:
    if suffix == ".jpeg":
        write_rgbnt201(tmp_path, train=train, suffix=".jpg")
        for path in tmp_path.rglob("*.jpg"):
            path.rename(path.with_suffix(".jpeg"))
    else:
        write_rgbnt201(tmp_path, train=train, suffix=suffix)
    index = scan("rgbnt201", tmp_path)
    assert [record.name for record in index.train] == [
        f"{identity}_cam{camera}_0_01" for identity in ("000001", "000003") for camera in (1, 2)
    ]
    first = index.train[0]
    assert (first.identity, first.camera, first.scene) == ("000001", "1", None)
    expected = [tmp_path / train / folder / f"000001_cam1_0_01{suffix}" for folder in ("RGB", "NI", "TI")]
    assert first.images == tuple(ImageSource(path) for path in expected)
    assert index.query is index.gallery
    assert index.protocol.exclude == "camera"
    assert index.published["train"] == (3951, 171)


def test_rgbnt100_strips_become_columns(tmp_path: Path) -> None:
    index = scan("rgbnt100", write_rgbnt100(tmp_path))
    path = tmp_path / "rgbir/bounding_box_train/0001_c0001_001.jpg"
    assert index.train[0].images == tuple(ImageSource(path, (start, start + 256)) for start in (0, 256, 512))
    assert (index.train[0].identity, index.train[0].camera) == ("0001", "0001")
    assert [len(split) for split in (index.train, index.query, index.gallery)] == [4, 2, 4]
    assert not index.query_is_gallery


def test_msvr310_view_is_camera_and_scene_is_excluded(tmp_path: Path) -> None:
    index = scan("msvr310", write_msvr310(tmp_path))
    record = index.gallery[1]
    assert (record.name, record.identity, record.camera, record.scene) == ("0002_s013_v4_000", "0002", "4", "013")
    assert index.protocol.exclude == "scene"
    assert [len(split) for split in (index.train, index.query, index.gallery)] == [4, 2, 4]


def test_wmveid863_absent_file_is_none(tmp_path: Path) -> None:
    index = scan("wmveid863", write_wmveid863(tmp_path))
    record = index.gallery[-1]
    assert (record.name, record.identity, record.camera, record.scene) == ("0004/v2_n0_s012_0003", "0004", "2", "012")
    assert [source is not None for source in record.images] == [True, False, True]


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("v1_n0_s012_0003", ("1", "012", False)),
        ("0002_v3_n1_s101_003", ("3", "101", True)),
        ("v7n1s005", ("7", "005", True)),
        ("v1_s012_0003", None),
        ("n0_s012_0003", None),
        ("v1_n0_12", None),
        ("v12_n0_s012", None),
    ],
)
def test_wmveid863_names(stem: str, expected: tuple[str, str, bool] | None) -> None:
    assert wmveid863.parse_name(stem) == expected


@pytest.mark.parametrize("format", WRITERS)
def test_listing_does_not_depend_on_the_file_system_order(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = WRITERS[format](tmp_path)
    expected = scan(format, root)
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(iterdir(self), reverse=True)))
    assert scan(format, root) == expected


@pytest.mark.parametrize("format", ["rgbnt201", "rgbnt100", "msvr310", "wmveid863"])
def test_missing_split_and_missing_root(tmp_path: Path, format: str) -> None:
    root = WRITERS[format](tmp_path / "set")
    folder = "rgbir/bounding_box_test" if format == "rgbnt100" else {"msvr310": "bounding_box_test"}.get(format, "test")
    shutil.rmtree(root / folder)
    with pytest.raises(DataError, match="split folder is missing"):
        scan(format, root, skip_bad=True)
    with pytest.raises(DataError, match="no such folder; set data.root to the folder"):
        scan(format, tmp_path / "nowhere")


def test_missing_split_hints_at_the_folder_below(tmp_path: Path) -> None:
    write_rgbnt201(tmp_path / "RGBNT201")
    with pytest.raises(DataError, match=r"RGBNT201 holds it: set data\.root to that"):
        scan("rgbnt201", tmp_path)


@pytest.mark.parametrize("format", ["rgbnt201", "rgbnt100", "msvr310", "wmveid863"])
def test_empty_split(tmp_path: Path, format: str) -> None:
    root = WRITERS[format](tmp_path)
    folder = {"rgbnt100": "rgbir/bounding_box_train", "msvr310": "bounding_box_train", "rgbnt201": "train_171"}
    for path in (root / folder.get(format, "train")).rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="no usable triplet in the train split"):
        scan(format, root, skip_bad=True)


def test_missing_and_empty_modality_folders(tmp_path: Path) -> None:
    root = write_rgbnt201(tmp_path)
    shutil.rmtree(root / "train_171/NI")
    assert kinds("rgbnt201", root) == ["missing_folder"]
    (root / "train_171/NI").mkdir()
    assert kinds("rgbnt201", root) == ["empty_folder", "empty_split"]


def test_empty_identity_folder(tmp_path: Path) -> None:
    root = write_msvr310(tmp_path)
    (root / "bounding_box_train/0009").mkdir()
    assert kinds("msvr310", root) == ["empty_folder"]


@pytest.mark.parametrize(
    ("format", "victim"),
    [
        ("rgbnt201", "train_171/TI/000001_cam1_0_01.jpg"),
        ("msvr310", "bounding_box_train/0001/ni/0001_s002_v4_000.jpg"),
    ],
)
def test_missing_modality_file(tmp_path: Path, format: str, victim: str) -> None:
    root = WRITERS[format](tmp_path)
    (root / victim).unlink()
    with pytest.raises(DataError, match=Path(victim).name) as caught:
        scan(format, root)
    assert "\n" not in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    assert "trireid check-data" in str(caught.value)
    index = scan(format, root, skip_bad=True)
    assert [(fault.kind, fault.path) for fault in index.faults] == [("missing_modality", root / victim)]
    assert len(index.train) == 3


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("rgbnt201", "train_171/RGB/28_cam1_0_01.jpg"),
        ("rgbnt201", "train_171/RGB/000001_cam1_0_01.bmp.tif"),
        ("rgbnt100", "rgbir/query/0002_1_001.jpg"),
        ("msvr310", "query3/0002/vis/0002_s002_v8_000.jpg"),
        ("msvr310", "query3/0002/vis/0004_s002_v1_000.jpg"),
        ("wmveid863", "query/0002/vis/photo.jpg"),
    ],
)
def test_bad_name(tmp_path: Path, format: str, name: str) -> None:
    root = WRITERS[format](tmp_path)
    path = root / name
    path.write_bytes(next(root.rglob("*.jpg")).read_bytes())
    faults = read_index(format, root).faults
    assert [(fault.kind, fault.path) for fault in faults] == [("bad_name", path)]
    assert str(path) in faults[0].message


def test_bad_identity_folder_and_duplicate_name(tmp_path: Path) -> None:
    root = write_msvr310(tmp_path)
    (root / "query3/0002").rename(root / "query3/two")
    assert kinds("msvr310", root) == ["bad_name"]
    other = write_rgbnt201(tmp_path / "other")
    write_image(other / "test/RGB/000002_cam1_0_01.png")
    assert kinds("rgbnt201", other) == ["duplicate_name"]


def test_hidden_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    root = write_rgbnt201(tmp_path)
    (root / "test/RGB/.DS_Store").write_bytes(b"x")
    (root / "test/RGB/Thumbs.db").write_bytes(b"x")
    assert kinds("rgbnt201", root) == []


def test_overlapping_identities_leave_training(tmp_path: Path) -> None:
    root = write_rgbnt201(tmp_path)
    for folder in ("RGB", "NI", "TI"):
        write_image(root / "train_171" / folder / "000002_cam3_0_07.jpg")
    with pytest.raises(DataError, match="identity 000002: 1 training triplets"):
        scan("rgbnt201", root)
    index = scan("rgbnt201", root, skip_bad=True)
    assert {record.identity for record in index.train} == {"000001", "000003"}
    assert [fault.kind for fault in index.faults] == ["identity_overlap"]


def test_test_folder_copied_over_training_is_an_error(tmp_path: Path) -> None:
    root = write_rgbnt201(tmp_path)
    shutil.rmtree(root / "train_171")
    shutil.copytree(root / "test", root / "train_171")
    with pytest.raises(DataError, match="no usable triplet in the train split"):
        scan("rgbnt201", root, skip_bad=True)


def test_swapped_split_is_found_by_the_published_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_rgbnt100(tmp_path)
    published = {"train": (4, 2), "query": (4, 2), "gallery": (2, 2)}  # this tree has 4, 2 and 4
    swapped = rgbnt100.FORMAT.__class__("rgbnt100", "camera", published, rgbnt100.read)
    monkeypatch.setitem(FORMATS, "rgbnt100", swapped)
    with pytest.raises(DataError, match="query has 2 .* gallery 4, but the published counts are the other way round"):
        scan("rgbnt100", root, skip_bad=True)


def test_query_without_match(tmp_path: Path) -> None:
    root = write_msvr310(tmp_path)
    for path in (root / "bounding_box_test/0002").rglob("*_s013_*"):
        path.unlink()  # left: the query's own scene
    with pytest.raises(DataError, match="query 0002_s002_v4_000: the gallery has no other triplet"):
        scan("msvr310", root)
    index = scan("msvr310", root, skip_bad=True)
    assert [record.identity for record in index.query] == ["0004"]
    assert len(index.gallery) == 3


def test_query_without_match_stays_where_it_is_gallery_too(tmp_path: Path) -> None:
    root = write_rgbnt201(tmp_path)
    for path in (root / "test").rglob("000002_cam2*"):
        path.unlink()
    index = scan("rgbnt201", root, skip_bad=True)
    assert [fault.kind for fault in index.faults] == ["unmatched_query"]
    assert index.query is index.gallery
    assert len(index.query) == 3


def test_strip_of_wrong_width_is_found_with_the_pixels(tmp_path: Path) -> None:
    root = write_rgbnt100(tmp_path)
    path = write_image(root / "rgbir/bounding_box_train/0001_c0001_001.jpg", width=760)
    assert kinds("rgbnt100", root) == []
    index = read_index("rgbnt100", root, verify_pixels=True)
    assert [(fault.kind, fault.path) for fault in index.faults] == [("unreadable_image", path)]
    assert "768 pixels wide, this one has 760" in index.faults[0].message
    assert len(index.train) == 3


def test_truncated_image_is_skipped_and_progress_reported(tmp_path: Path) -> None:
    root = write_rgbnt201(tmp_path)
    path = root / "test/NI/000002_cam1_0_01.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    calls: list[tuple[int, int]] = []
    index = scan("rgbnt201", root, skip_bad=True, progress=lambda done, total: calls.append((done, total)))
    # Without cam1, the triplet of cam2 has no match any more: both are said.
    assert [fault.kind for fault in index.faults] == ["unreadable_image", "unmatched_query"]
    assert index.query is index.gallery
    assert calls == [(done, 24) for done in range(1, 25)]


def test_many_faults_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    root = write_rgbnt201(tmp_path)
    for number in range(7):
        write_image(root / f"test/RGB/wrong{number}.jpg")
    with pytest.raises(DataError, match="7 faults, the first ones") as caught:
        scan("rgbnt201", root)
    assert "wrong2" in str(caught.value)
    assert "wrong3" not in str(caught.value)


def test_unknown_format_and_rule(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="use one of rgbnt201, rgbnt100"):
        scan("market1501", tmp_path)
    root = write_rgbnt201(tmp_path)
    with pytest.raises(DataError, match="use one of auto, camera, scene, cross_camera, none"):
        scan("rgbnt201", root, exclude="time")
    decoded: list[tuple[int, int]] = []
    with pytest.raises(DataError, match="'time' is unknown"):
        read_index("rgbnt201", root, exclude="time", verify_pixels=True, progress=lambda *at: decoded.append(at))
    assert not decoded  # a large set takes minutes, and the word was wrong from the start
    with pytest.raises(DataError, match="no query has a scene"):
        scan("rgbnt201", root, exclude="scene")
    assert scan("rgbnt201", root, exclude="none").protocol.exclude == "none"
    assert scan("rgbnt201", root, exclude="cross_camera").protocol.exclude == "cross_camera"


def _names(file: str) -> list[str]:
    path = SHARED / "name_lists" / file
    if not path.is_file():
        pytest.skip("the true name lists are not on this machine (../shared/data/name_lists)")
    return [Path(name).stem for name in path.read_text(encoding="utf-8").split()]


@pytest.mark.parametrize(
    ("file", "module", "triplets", "identities", "cameras"),
    [
        ("RGBNT201_train.txt", rgbnt201, 3951, 171, 4),
        ("RGBNT201_test.txt", rgbnt201, 836, 30, 2),
        ("RGBNT100_train.txt", rgbnt100, 8675, 50, 8),
        ("RGBNT100_test.txt", rgbnt100, 8575, 50, 8),
        ("MSVR310_train.txt", msvr310, 1032, 155, 8),
        ("MSVR310_test.txt", msvr310, 1055, 155, 8),
    ],
)
def test_true_names_parse(file: str, module: object, triplets: int, identities: int, cameras: int) -> None:
    fields = [module.parse_name(name) for name in _names(file)]  # type: ignore[attr-defined]
    assert None not in fields
    counts = (len(fields), len({field.identity for field in fields}), len({field.camera for field in fields}))
    assert counts == (triplets, identities, cameras)


def test_landsat_places_scan() -> None:
    root = SHARED / "landsat_places"
    if not root.is_dir():
        pytest.skip("the real images are not on this machine (../shared/data/landsat_places)")
    index = scan("rgbnt201", root)
    assert (len(index.train), len({record.identity for record in index.train})) == (512, 64)
    assert (len(index.query), len({record.identity for record in index.query})) == (504, 63)
    assert index.query is index.gallery
