"""Whole trees: names, counts, splits, true name lists, equal bytes, and no half of a tree."""

import errno
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from trireid.data.readers import read_index
from trireid.data.synthetic import SplitCount, write_synthetic, writer
from trireid.data.synthetic.layouts import LAYOUTS
from trireid.data.synthetic.plan import make_plan
from trireid.errors import DataError, InputError

SMALL = {"num_ids": 3, "num_cameras": 2, "per_camera": 3}
SIZES = {"rgbnt201": (32, 16), "rgbnt100": None, "msvr310": (16, 32), "wmveid863": (16, 32)}
NAMES = {  # from the table of the formats, not from the readers
    "rgbnt201": r"(train|test)/(RGB|NI|TI)/\d{6}_cam[1-9]_\d_\d{2}\.jpg",
    "rgbnt100": r"rgbir/(bounding_box_train|query|bounding_box_test)/\d{4}_c\d{4}_\d{3}\.jpg",
    "msvr310": r"(bounding_box_train|query3|bounding_box_test)/(\d{4})/(vis|ni|th)/\2_s\d{3}_v[0-7]_\d{3}\.jpg",
    "wmveid863": r"(train|query|test)/\d{4}/(vis|ni|th)/v\d_n[01]_s\d{3}_\d{4}\.jpg",
}
NAME_LISTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "name_lists"
TRUE_COUNTS = {
    "rgbnt201": {"train": (3951, 171), "query": (836, 30), "gallery": (836, 30)},
    "rgbnt100": {"train": (8675, 50), "query": (1715, 50), "gallery": (8575, 50)},
    "msvr310": {"train": (1032, 155), "query": (591, 52), "gallery": (1055, 155)},
}


def write(out, layout="rgbnt201", **options):
    return write_synthetic(out, layout=layout, image_size=SIZES[layout], **{**SMALL, **options})


def content(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def plan_of(layout, names=None, **options):
    settings = {"num_ids": None, "num_cameras": None, "per_camera": None, "difficulty": "easy", "seed": 0}
    return make_plan(layout=layout, names=names, image_size=None, **{**settings, **options})


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_names_and_counts_of_each_layout(layout, tmp_path):
    summary = write(tmp_path / "set", layout)
    queries = 18 if layout in ("rgbnt201", "msvr310") else 6  # the 1st and 6th of six, for each of three identities
    assert summary.splits == {"train": SplitCount(18, 3), "query": SplitCount(queries, 3), "gallery": SplitCount(18, 3)}
    files = set(content(tmp_path / "set")) - {"synthetic.json"}
    assert [name for name in files if not re.fullmatch(NAMES[layout], name)] == []
    folders = 2 if layout == "rgbnt201" else 3
    per_triplet = 1 if layout == "rgbnt100" else 3
    assert len(files) == (36 + (queries if folders == 3 else 0)) * per_triplet
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_reader_of_the_layout_finds_no_fault(layout, tmp_path):
    summary = write(tmp_path / "set", layout)
    index = read_index(layout, tmp_path / "set", verify_pixels=True)
    assert index.faults == ()
    assert {split: len(getattr(index, split)) for split in summary.splits} == {
        split: count.triplets for split, count in summary.splits.items()
    }
    assert {record.identity for record in index.train}.isdisjoint(record.identity for record in index.gallery)


def test_images_on_disk_have_their_size_and_grey_near_infrared(tmp_path):
    write(tmp_path / "persons")
    pixels = np.asarray(Image.open(tmp_path / "persons/train/NI/000001_cam1_0_00.jpg"))
    assert pixels.shape == (32, 16, 3)
    assert (pixels == pixels[..., :1]).all()
    write(tmp_path / "strips", "rgbnt100", num_ids=2, per_camera=1)
    strip = np.asarray(Image.open(tmp_path / "strips/rgbir/query/0003_c0001_000.jpg"))
    assert strip.shape == (128, 768, 3)
    assert np.ptp(strip[:, 264:504].astype(int), axis=2).max() <= 1  # away from the seams, where JPEG blocks mix
    same = tmp_path / "strips/rgbir/bounding_box_test/0003_c0001_000.jpg"
    assert same.read_bytes() == (tmp_path / "strips/rgbir/query/0003_c0001_000.jpg").read_bytes()


def test_equal_arguments_give_equal_bytes_in_any_order_of_work(tmp_path, monkeypatch):
    write(tmp_path / "first")
    monkeypatch.setattr(writer, "CHUNK", 5)
    monkeypatch.setattr(writer, "_orders", lambda root, plan, orders=writer._orders: orders(root, plan)[::-1])
    write(tmp_path / "second")
    assert content(tmp_path / "first") == content(tmp_path / "second")
    write(tmp_path / "third", seed=1)
    assert content(tmp_path / "first") != content(tmp_path / "third")


@pytest.mark.slow
def test_the_number_of_workers_does_not_matter(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_progress_ends_at_the_total(tmp_path):
    seen = []
    write(tmp_path / "set", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (36, 36)
    assert seen == sorted(seen)


def test_true_names_are_honoured(tmp_path):
    train = ["000028_cam1_0_02.jpg", "000028_cam3_1_00.jpg", "000031_cam2_0_07.jpg"]
    test = ["000258_cam1_0_00.jpg", "000258_cam2_0_01.jpg", "000260_cam2_0_00.jpg"]
    lists = [tmp_path / "my_train.txt", tmp_path / "my_test.txt"]
    for path, names in zip(lists, (train, test), strict=True):
        path.write_text("\n".join(names) + "\n")
    summary = write_synthetic(tmp_path / "set", layout="rgbnt201", names=lists, image_size=(32, 16))
    assert summary.splits["train"] == SplitCount(3, 2)
    expected = {f"{split}/{folder}/{name}" for split, names in (("train", train), ("test", test)) for name in names
                for folder in ("RGB", "NI", "TI")}  # fmt: skip
    assert set(content(tmp_path / "set")) == expected | {"synthetic.json"}


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(TRUE_COUNTS))
def test_true_lists_give_the_published_counts(layout):
    if not NAME_LISTS.is_dir():
        pytest.skip(f"{NAME_LISTS} is not there: no true names on this machine")
    plan = plan_of(layout, names=[NAME_LISTS])
    counts = {split: (count.triplets, count.identities) for split, count in writer.count_splits(plan).items()}
    assert counts == TRUE_COUNTS[layout]
    written = Counter(path.parts[0] for item in plan.items for target in item.targets for path in target)
    if layout == "rgbnt201":
        assert written == {"train_171": 3 * 3951, "test": 3 * 836}
    names = (NAME_LISTS / f"{layout.upper()}_test.txt").read_text().split()
    assert sorted(item.shot.name for item in plan.items if item.split == "test") == sorted(names)


def test_wmveid863_lists_name_the_folder_of_the_identity(tmp_path):
    path = tmp_path / "some_train.txt"
    path.write_text("0007/v3_n1_s012_0000.jpg\n")
    item = plan_of("wmveid863", names=[path]).items[0]
    assert (item.shot.identity, item.shot.view, item.shot.night) == ("0007", 3, True)
    assert [str(path) for path in item.targets[0]] == [
        f"train/0007/{m}/v3_n1_s012_0000.jpg" for m in ("vis", "ni", "th")
    ]


def test_msvr310_light_is_the_scene_and_view_is_the_camera(tmp_path):
    path = tmp_path / "some_test.txt"
    path.write_text("0002_s013_v4_003.jpg\n0002_s002_v4_001.jpg\n0004_s002_v1_000.jpg\n")
    items = plan_of("msvr310", names=[path]).items
    assert [(item.shot.view, item.shot.light) for item in items] == [(4, 13), (4, 2), (1, 2)]
    assert [item.is_query for item in items] == [True, True, False]  # 0004 was seen in one scene only


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "market"}, "'market' is unknown; use one of rgbnt201"),
        ({"difficulty": "medium"}, "'medium' is unknown; use one of easy, hard"),
        ({"num_ids": 1}, "1 identities: give 2 to"),
        ({"num_cameras": 0}, "0 cameras: give 2 to 9"),
        ({"num_cameras": 10}, "10 cameras: give 2 to 9"),
        ({"per_camera": 0}, "0 images per camera"),
        ({"workers": -1}, "-1 workers"),
        ({"image_size": (8, 4)}, "too small"),
        ({"image_size": (32, 99999)}, "both sides must be at most 4096 pixels"),
        ({"layout": "rgbnt100", "image_size": (64, 128)}, "leave the size out"),
        ({"names": [Path("x_train.txt")], "num_ids": 3}, "name lists and numbers cannot be combined"),
        ({"names": []}, "no name list was given"),
    ],
)
def test_wrong_arguments_are_input_errors(options, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        write_synthetic(tmp_path / "set", **{"layout": "rgbnt201", **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a_train.txt": "000028_cam1_0_02.jpg\n0002_s013_v4_003.jpg\n"},
            "line 2: '0002_s013_v4_003.jpg' is not a name of",
        ),
        ({"a_train.txt": "\n"}, "holds no names"),
        ({"a_train.txt": "000028_cam1_0_02.jpg\n" * 2}, "listed twice"),
        ({"a_train.txt": "000028_cam1_0_02.jpg", "b_train.txt": "000029_cam1_0_02.jpg"}, "a second list"),
        ({"a_train.txt": "000028_cam1_0_02.jpg", "a_test.txt": "000028_cam2_0_02.jpg"}, "disjoint"),
        ({"names.txt": "000028_cam1_0_02.jpg"}, "the split is not known"),
        ({"a_train.txt": "000028_cam1_0_02.jpg\n000028_cam1_0_02.PNG\n"}, "PNG is listed twice"),
        ({"a_train.txt": "000028_cam1_0_02.exe"}, "'000028_cam1_0_02.exe' is not a name of"),
    ],
)
def test_wrong_lists_are_data_errors(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        write_synthetic(tmp_path / "set", layout="rgbnt201", names=[tmp_path / name for name in files])
    assert not (tmp_path / "set").exists()


ONE_NAME = {"rgbnt201": "000001_cam1_0_00", "rgbnt100": "0001_c0001_000", "msvr310": "0001_s001_v0_000"}
ONE_NAME["wmveid863"] = "0001/v1_n0_s001_0000"


@pytest.mark.parametrize("layout", list(ONE_NAME))
@pytest.mark.parametrize(
    "before",
    ["{outside}/", "../../", "../../../victim/", "sub/", "./", "a//", "..\\", "C:/", "\0", "\x1b[31m", "x" * 300],
)
def test_a_name_that_leads_outside_is_refused_and_nothing_is_written(layout, before, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    folder, _, name = ONE_NAME[layout].rpartition("/")
    for written in (before.format(outside=victim) + name, f"{before.format(outside=victim)}{ONE_NAME[layout]}"):
        line = f"{folder}/{written}" if folder and "/" not in written.removesuffix(name).strip("/") else written
        (tmp_path / "a_train.txt").write_text(f"{ONE_NAME[layout]}.jpg\n{line}.jpg\n")
        with pytest.raises(DataError, match="line 2: .* is not a name of layout") as caught:
            write_synthetic(tmp_path / "made" / "set", layout=layout, names=[tmp_path / "a_train.txt"])
        assert len(str(caught.value)) < 400 + len(str(tmp_path))
    assert not list(victim.iterdir())
    assert not (tmp_path / "made").exists()


def test_an_existing_file_is_not_written_over(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        writer.write_file(tmp_path / "a.jpg", b"other")
    assert (tmp_path / "a.jpg").read_bytes() == b"precious"


def test_a_folder_without_its_lists_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"RGBNT201_train\.txt: there is no such name list"):
        write_synthetic(tmp_path / "set", layout="rgbnt201", names=[tmp_path])


def test_a_target_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set")  # an empty folder is fine
    before = content(tmp_path / "set")
    with pytest.raises(DataError, match="is not an empty folder"):
        write(tmp_path / "set", seed=1)
    assert content(tmp_path / "set") == before


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def fail_later(path, content):
        written.append(path)
        if len(written) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(writer, "write_file", fail_later)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        write(tmp_path / "set")
    assert len(written) == 11
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_set_of_any_size_is_not_begun(tmp_path):
    with pytest.raises(InputError, match="more than 1000000 triplets: give fewer"):
        write_synthetic(tmp_path / "set", layout="rgbnt201", num_ids=2, per_camera=999_999_999)
    assert not (tmp_path / "set").exists()


def test_folders_of_killed_runs_are_removed_and_those_in_use_are_not(tmp_path, caplog):
    killed, other = tmp_path / f".set.abc{writer.UNFINISHED}", tmp_path / ".set.backup"
    for folder in (killed, other):
        (folder / "tree").mkdir(parents=True)
    with writer.beside(tmp_path / "set") as tree:  # a run that goes on
        assert not killed.exists()
        write(tmp_path / "set", num_ids=2)
        assert tree.is_dir()
        (tmp_path / "set").rename(tmp_path / "first")
    assert other.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"first", "set", ".set.backup"}
    assert [record.getMessage() for record in caplog.records] == [
        f"removed {killed}, which an earlier run left when it was killed"
    ]


def test_more_workers_than_a_machine_has_are_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match="1000000 workers: give 0 .* to 256"):
        write(tmp_path / "set", workers=1_000_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_run_ends_its_workers_and_the_next_one_clears_its_folder(tmp_path):
    command = [sys.executable, "-m", "trireid", "synth", "--out", str(tmp_path / "set"), "--ids", "300"]
    run = subprocess.Popen([*command, "--workers", "2"])
    unfinished = f".set.*{writer.UNFINISHED}/tree/**/*.jpg"
    wait_until(lambda: any(tmp_path.glob(unfinished)))
    workers = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))
    write(tmp_path / "set", num_ids=2)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def wait_until(is_so, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)
