"""Where galleries of the tests are: in a folder, and, in the tier `server`, on a real Milvus server."""

from __future__ import annotations

import itertools

import pytest

_numbers = itertools.count()


@pytest.fixture(params=["folder", pytest.param("server", marks=pytest.mark.server)])
def gallery_location(request, tmp_path):
    """Arguments of `Gallery.create` and `Gallery.open`: a new folder, in the tier `server` a new name on the server."""
    if request.param == "folder":
        return {"location": tmp_path / "gallery", "name": "gallery"}
    return {"location": request.getfixturevalue("server").address, "name": f"gallery_{next(_numbers)}"}
