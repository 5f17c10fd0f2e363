"""A gallery in a folder after its process was killed."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest

from gallery_cases import model_of, random_embeddings
from trireid import Gallery
from trireid.errors import RunError
from trireid.gallery.connection import DATA, IN_USE
from trireid.gallery.engine import Engine
from trireid.gallery.location import MARK, made_folder

KILLS = Path(__file__).parents[2] / "benchmarks" / "gallery_kills.py"


def test_what_the_engine_breaks_when_it_is_killed_is_mended(tmp_path, monkeypatch):
    folder, logs = tmp_path / "gallery", {}
    flush = Engine._flush

    def keep_the_log(engine, name):
        logs.update({path: path.read_bytes() for path in (folder / DATA).rglob("wal_*.arrow")})
        flush(engine, name)

    found = random_embeddings(np.random.default_rng(0), model_of(), 5)
    with Gallery.create(folder, found.model) as gallery:
        monkeypatch.setattr(Engine, "_flush", keep_the_log)
        gallery.add(found)
        monkeypatch.undo()
    assert logs
    assert not (folder / IN_USE).exists()

    for path, content in logs.items():  # as if the process had been killed before it removed them
        path.write_bytes(content)
    with Gallery.open(folder) as gallery:
        assert gallery.count() == 10  # the fault of Milvus Lite 3.2; without it, `connection.py` can be simplified

    for path, content in logs.items():
        path.write_bytes(content)
    (folder / IN_USE).touch()
    indexes = list((folder / DATA).rglob("*.idx"))
    assert indexes
    for path in indexes:  # another fault of it: an index that was not written to its end
        path.write_bytes(path.read_bytes()[:50])
    for _ in range(2):
        with Gallery.open(folder) as gallery:
            assert gallery.count() == 5
            assert [item.key for item in gallery.list()] == sorted(str(item.key) for item in found.items)
            keys = [match.key for match in gallery.query(found, top=5)[0].matches]
            assert len(set(keys)) == len(keys)


def test_a_gallery_that_was_not_created_to_its_end_is_created_again(tmp_path):
    folder = tmp_path / "gallery"
    Gallery.create(folder, model_of()).close()
    mark = folder / MARK
    mark.write_text('{"format": "trireid gallery", "schema_version": 1, "unfinished": true}')
    with pytest.raises(RunError, match=r"not created to its end; create it again at the same place$"):
        Gallery.open(folder)
    Gallery.create(folder, model_of()).close()
    with Gallery.open(folder) as gallery:
        assert gallery.count() == 0


def test_a_folder_in_which_another_process_makes_a_gallery_is_left_alone(tmp_path, monkeypatch):
    """Each lock is of its own opening of the folder, so that one process stands for two here."""
    folder, said = tmp_path / "gallery", r"is being made or used by another process: wait until it ends"
    with made_folder(folder):
        for use in (Gallery.open, partial(Gallery.create, model=model_of())):
            with pytest.raises(RunError, match=said):
                use(folder)
        assert not Gallery.exists(folder)
        (folder / DATA).mkdir()
    assert Gallery.exists(folder)
    assert (folder / DATA).is_dir()
    with pytest.raises(RunError, match="exists already; open that gallery, or choose another folder"):
        Gallery.create(folder, model_of())
    with monkeypatch.context() as late:  # the other process fails and removes the folder just before the lock
        late.setattr("trireid.files.fcntl.flock", lambda *_: rmtree(folder, ignore_errors=True))
        with pytest.raises(RunError, match=said):
            Gallery.create(folder, model_of())
    with pytest.raises(KeyboardInterrupt), made_folder(folder / "deep"):
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_nothing_is_lost_torn_or_doubled_when_the_process_is_killed():
    command = [sys.executable, str(KILLS), "--kills", "5", "--creations", "2", "--longest", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills                                5" in done.stdout
