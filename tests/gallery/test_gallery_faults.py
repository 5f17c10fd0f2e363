"""What can go wrong around a gallery in a folder: one line that says what to do, and nothing that was done is lost."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gallery_cases import model_of, random_embeddings
from trireid import Gallery
from trireid.errors import RunError
from trireid.gallery.location import MARK

TESTS = Path(__file__).parents[1]
START = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import numpy as np; from gallery_cases import *\n"
START += "from trireid import Gallery, Filter; from trireid.errors import RunError\n"
START += "found = random_embeddings(np.random.default_rng(0), model_of(), 40)\n"
COMMAND = "from trireid.cli import main; main()"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def in_a_mount_namespace(mount: str, script: str) -> subprocess.CompletedProcess[str]:
    """A Python script where a file system is mounted that only it sees."""
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if sys.platform != "linux" or run(*prefix, "true").returncode:
        pytest.skip("this machine allows no mount namespace of its own (unshare)")
    return run(*prefix, f'{mount} && exec "$0" -c "$1"', sys.executable, START + script)


@pytest.fixture
def filled(tmp_path):
    """The folder of a closed gallery of 40 items."""
    found = random_embeddings(np.random.default_rng(0), model_of(), 40)
    with Gallery.create(tmp_path / "gallery", found.model) as gallery:
        gallery.add(found)
    return tmp_path / "gallery"


def test_what_cannot_be_opened(tmp_path, monkeypatch):
    folder = tmp_path / "gallery"
    with pytest.raises(RunError, match=r"^there is no gallery in \S+; make one with `trireid gallery create`$"):
        Gallery.open(folder)
    with (
        Gallery.create(folder, model_of()),
        pytest.raises(RunError, match="is open elsewhere: close it there, or use a server$"),
    ):
        Gallery.open(folder)
    mark = (folder / MARK).read_text()
    for content, message in (
        (mark.replace('"schema_version": 1', '"schema_version": 7'), "has schema version 7, this trireid reads 1"),
        (mark[:20], "cannot be read"),
    ):
        (folder / MARK).write_text(content)
        with pytest.raises(RunError, match=message):
            Gallery.open(folder)
    old = tmp_path / "old.db"
    old.write_bytes(b"SQLite format 3\0")
    with pytest.raises(RunError, match=r"old\.db is a file.*Milvus Lite 2"):
        Gallery.open(old)
    with pytest.raises(RunError, match="File name too long"):
        Gallery.create(tmp_path / ("x" * 300), model_of())

    (folder / MARK).write_text(mark)
    load = builtins.__import__
    for name in ("pymilvus", "milvus_lite"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            patch.setattr(builtins, "__import__", load)
            with pytest.raises(RunError, match=rf"needs the package {name}: pip install 'trireid\[gallery\]'$"):
                Gallery.open(folder)
    Gallery.open(folder).close()


@pytest.mark.slow
def test_a_second_process_is_told_so_by_the_command(filled):
    with Gallery.open(filled):
        told = run(sys.executable, "-c", COMMAND, "gallery", "info", str(filled))
    assert (told.returncode, told.stdout) == (2, "")
    assert "is open elsewhere" in " ".join(told.stderr.split())
    assert "Traceback" not in told.stderr


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(filled):
    script = f"""
try:
    Gallery.open({str(filled)!r})
except RunError as error:
    print(error)
"""
    told = in_a_mount_namespace(f"mount --bind '{filled}' '{filled}' && mount -o remount,bind,ro '{filled}'", script)
    assert told.stderr == ""
    assert told.stdout.count("\n") == 1
    assert "Read-only file system" in told.stdout
    with Gallery.open(filled) as gallery:
        assert gallery.count() == 40


@pytest.mark.slow
def test_a_disk_that_becomes_full_and_has_space_again(tmp_path):
    script = f"""
import os
place = {str(tmp_path)!r}
done = set()
gallery = Gallery.create(place + "/gallery", found.model)
try:
    for number in range(1000):
        keys = [f"{{number}}/{{each}}" for each in range(40)]
        more = random_embeddings(np.random.default_rng(number), model_of(), 40, keys=keys)
        gallery.add(more)
        done |= {{item.key for item in more.items}}
        if number == 3:
            with open(place + "/ballast", "wb") as ballast:
                ballast.write(bytes(3_000_000))
except RunError as error:
    print(error)
try:
    gallery.add(found)
except RunError as error:
    print(error)
try:
    gallery.close()
except RunError as error:
    print(error)
os.remove(place + "/ballast")
with Gallery.open(place + "/gallery") as gallery:
    kept, last = [], None
    while page := gallery.list(after=last, limit=1000):
        kept += [item.key for item in page]
        last = kept[-1]
    print(len(done) > 0, done <= set(kept), len(kept) == len(set(kept)) == gallery.count())
    gallery.add(found)
    print(gallery.get(found.items[0].key)[0].key == found.items[0].key)
"""
    told = in_a_mount_namespace(f"mount -t tmpfs -o size=5m tmpfs '{tmp_path}'", script)
    lines = told.stdout.splitlines()
    assert told.stderr == ""
    assert "No space left on device" in lines[0]
    assert "free some space" in lines[0]
    assert lines[-2:] == ["True True True", "True"]
