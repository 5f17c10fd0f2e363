"""What the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_run import write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small RGBNT201 tree for the tests of one file, which leave it as it is."""
    return write_tree(tmp_path_factory.mktemp("tree"))
