"""Which paths of a user are read: regular files of a sensible size, nothing that waits without end or never ends."""

import os
from pathlib import Path

import pytest

from trireid.cli.guard import guarded
from trireid.data.images import ImageError, decode_image
from trireid.errors import InputError
from trireid.files import (
    UnreadableFileError,
    check_regular,
    file_name,
    inside,
    read_bytes,
    read_text,
    real_path,
    write_text,
)


def test_regular_files_are_read_up_to_their_limit(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("a,\u00e9\r\n".encode())
    assert read_bytes(path) == path.read_bytes()
    assert read_text(path, limit=6) == "a,\u00e9\r\n"
    check_regular(path, limit=6)
    with pytest.raises(UnreadableFileError, match="more than the 0.0 MB"):
        read_bytes(path, limit=5)
    with pytest.raises(UnreadableFileError, match="more than"):
        check_regular(path, limit=5)


def test_a_huge_file_is_refused_by_its_size_alone(tmp_path):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(3_000_000_000)  # no blocks on the disk: reading it would take 3 GB of memory all the same
    with pytest.raises(UnreadableFileError, match=r"it has 3,000.0 MB, more than the 268.4 MB"):
        read_bytes(path)
    with pytest.raises(ImageError, match=r"huge.jpg: cannot be read \(it has 3,000.0 MB"):
        decode_image(path)


@pytest.mark.parametrize(("path", "kind"), [("pipe", "a named pipe"), ("/dev/zero", "a device"), ("folder", None)])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, path, kind):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    path = tmp_path / Path(path)
    for read in (read_bytes, check_regular):
        with pytest.raises(OSError, match=f"it is {kind}, not a regular file" if kind else "Is a directory") as caught:
            read(path)
        assert isinstance(caught.value, UnreadableFileError if kind else IsADirectoryError)


def test_a_file_that_tells_a_wrong_size_is_still_limited():
    assert read_bytes(Path("/proc/self/stat"))  # its size is told as 0
    with pytest.raises(UnreadableFileError, match="more than"):
        read_bytes(Path("/proc/self/stat"), limit=10)


def test_names_of_files_are_told_apart_and_stay_in_their_folder():
    plain = ["000101_cam1_0_00", "head=none", "张三一", "é", "a.b"]
    assert [file_name(text) for text in plain] == plain
    odd = ["a b", "a,b", "a/b", "..", ".", "", "/", "../../etc", ".hidden", "a\nb", "\udcff", "张三/一", "-x"]
    odd += ["x" * 500, "x" * 501]
    names = [file_name(text) for text in [*plain, *odd, "张" * 200, "张" * 201]]
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name and name[0] not in ".-" and len(name.encode()) <= 120 for name in names)


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../b", "a//b", "./a", "a\\b", "C:a", "a\0", "\x1b", "\udce9", "\xe9" * 128]
)
def test_a_name_that_is_not_below_the_folder_is_an_error(tmp_path, name):
    with pytest.raises(InputError, match="it must be that of a file below") as caught:
        inside(tmp_path, name)
    assert str(caught.value).isprintable()


def test_a_plain_name_is_below_the_folder(tmp_path):
    assert inside(tmp_path, "a/..b/\xe9 c.jpg") == tmp_path / "a" / "..b" / "\xe9 c.jpg"


def test_odd_paths_and_texts_are_no_tracebacks(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert real_path(tmp_path / "loop").name == "loop"
    with pytest.raises(InputError, match="holds a NUL character"):
        real_path(tmp_path / "a\0b")
    write_text(tmp_path / "page.md", "caf\udce9")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == "caf\\udce9"
    with pytest.raises(SystemExit, match="2"), guarded():
        (tmp_path / "loop").read_bytes()


def test_memory_is_taken_for_a_file_and_not_for_its_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert read_bytes(tmp_path / "file", limit=2**60) == b"content"
    if Path("/proc/meminfo").exists():
        assert len(read_bytes(Path("/proc/meminfo"))) > 100  # the system says that it has no bytes
