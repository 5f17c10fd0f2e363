"""Where galleries of the tests are: in a folder, and, in the tier `server`, on a real Milvus server."""

from __future__ import annotations

import itertools

import pytest

import milvus_server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server():
    """One server for all tests of the tier."""
    reason = milvus_server.why_not()
    if reason is not None:
        pytest.skip(reason)
    with milvus_server.running() as running:
        yield running


@pytest.fixture(params=["folder", pytest.param("server", marks=pytest.mark.server)])
def location(request, tmp_path):
    """A new folder; in the tier `server` the address of the server."""
    if request.param == "folder":
        return str(tmp_path / "gallery")
    return request.getfixturevalue("server").address


@pytest.fixture
def gallery_name():
    """A name that no other test uses: all tests share one server."""
    return f"gallery_{next(_numbers)}"
