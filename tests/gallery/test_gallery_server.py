"""A gallery on a server: copied, used by two clients at once, and when the server hangs, ends or is another one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import milvus_server
from gallery_cases import model_of, random_embeddings
from trireid import Filter, Gallery
from trireid.errors import RunError
from trireid.gallery import connection

TESTS = Path(__file__).parents[1]
UNREACHABLE = r"^the Milvus server http://\S+ cannot be reached: check the address, and that the server runs$"
OTHER_CLIENT = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from gallery_cases import model_of, random_embeddings
from trireid import Gallery
with Gallery.open({location!r}, name={name!r}) as gallery:
    for number in range(8):
        keys = [f"other{{number}}/{{each}}" for each in range(20)]
        gallery.add(random_embeddings(np.random.default_rng(number), model_of(), 20, keys=keys))
"""


def test_an_address_without_a_server_is_refused_in_one_line():
    for address in ("http://127.0.0.1:1", "http://no-such-host.invalid:19530"):
        with pytest.raises(RunError, match=UNREACHABLE):
            Gallery.open(address)


@pytest.mark.server
def test_a_copy_to_a_server_and_back_has_the_same_checksum(server, tmp_path):
    found = random_embeddings(np.random.default_rng(0), model_of(), 150)
    with Gallery.create(tmp_path / "first", found.model) as first:
        first.add(found)
        there = first.copy(server.address, name="copied")
        before = first.query(found.select(range(20)), top=5)
    with Gallery.open(server.address, name="copied") as copied:
        back = copied.copy(tmp_path / "second")
        with pytest.raises(RunError, match="exists already; choose another name$"):
            copied.copy(server.address, name="copied")
    with Gallery.open(tmp_path / "second") as second:
        assert second.copy(tmp_path / "third") == back == there
        assert second.count() == 150
        assert second.query(found.select(range(20)), top=5) == before


@pytest.mark.server
def test_two_clients_write_and_read_one_gallery_at_once(server):
    where = {"location": server.address, "name": "shared"}
    with Gallery.create(model=model_of(), **where) as gallery:
        script = OTHER_CLIENT.format(tests=str(TESTS), **where)
        with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as other:
            rounds = 0
            while other.poll() is None or rounds < 8:
                keys = [f"own{rounds}/{each}" for each in range(20)]
                own = random_embeddings(np.random.default_rng(100 + rounds), gallery.model, 20, keys=keys)
                assert gallery.add(own).added == 20
                assert gallery.remove(Filter(keys=keys[:5])) == 5  # what this client wrote is seen at once
                assert [result.key for result in gallery.query(keys[5:7], top=3)] == keys[5:7]
                rounds += 1
        assert other.returncode == 0, other.stderr
    with Gallery.open(**where) as gallery:  # opening waits for all that was done before
        listed = [item.key for item in gallery.list(limit=1000)]
        assert len(listed) == len(set(listed)) == gallery.count() == 8 * 20 + rounds * 15


@pytest.mark.server
def test_a_server_that_hangs_or_ends_is_reported_and_keeps_what_was_done(tmp_path, monkeypatch):
    found = random_embeddings(np.random.default_rng(0), model_of(), 60)
    monkeypatch.setattr(connection, "SECONDS", 3.0)
    with milvus_server.running(tmp_path) as server:
        gallery = Gallery.create(server.address, found.model)
        gallery.add(found)
        server.pause()
        start = time.monotonic()
        with pytest.raises(RunError, match=r"has not answered for 3 seconds: see to the server, then repeat"):
            gallery.count()
        with pytest.raises(RunError, match="has not answered"):
            gallery.add(found)
        assert time.monotonic() - start < 15
        server.resume()
        assert gallery.count() == 60
        threading.Timer(0.3, server.kill).start()
        with pytest.raises(RunError, match="cannot be reached|reports:"):  # noqa: PT012 - it ends in one of the calls
            while True:
                gallery.add(found)
        with pytest.raises(RunError, match=UNREACHABLE):
            gallery.count()
        gallery.close()
        with pytest.raises(RunError, match=UNREACHABLE):
            Gallery.open(server.address)
    with milvus_server.running(tmp_path) as server, Gallery.open(server.address) as gallery:
        assert [item.key for item in gallery.list()] == sorted(str(item.key) for item in found.items)


@pytest.mark.server
def test_servers_of_other_versions(server, monkeypatch):
    from pymilvus import MilvusClient

    Gallery.create(server.address, model_of(), name="versions").close()
    for version in ("v2.3.5-lite", "2.6.1", "v3.0.0", "a version of its own"):
        monkeypatch.setattr(MilvusClient, "get_server_version", lambda *_, version=version, **__: version)
        Gallery.open(server.address, name="versions").close()
    monkeypatch.setattr(MilvusClient, "get_server_version", lambda *_, **__: "v2.2.16")
    with pytest.raises(RunError, match=r"has version v2\.2\.16; a gallery needs 2\.3 or newer: update the server"):
        Gallery.open(server.address, name="versions")
