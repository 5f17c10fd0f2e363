"""The public names of the package: all there, lazily, and the same for people and type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trireid


@pytest.mark.parametrize("name", trireid.__all__)
def test_every_public_name_is_there(name):
    assert getattr(trireid, name) is not None
    assert name in dir(trireid)


def test_names_that_others_rely_on():
    assert {
        "load_model",
        "load_upstream",
        "read_upstream",
        "rank_metrics",
        "build_model",
        "load_config",
        "ReIDOutput",
    } <= set(trireid.__all__)


def test_modules_are_reached_by_dots_without_importing_them_first(monkeypatch):
    monkeypatch.delattr(trireid.models, "sdtps", raising=False)  # as long as nobody has imported it
    monkeypatch.delattr(trireid.evaluation, "metrics", raising=False)
    assert trireid.models.sdtps.SDTPS(dim=8, num_patches=8) is not None
    assert trireid.evaluation.metrics.rank_metrics is trireid.rank_metrics
    with pytest.raises(AttributeError, match=r"'trireid\.models' has no attribute 'fly'"):
        trireid.models.fly  # noqa: B018


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="fly"):
        trireid.fly  # noqa: B018


def test_import_loads_nothing_heavy():
    code = "import sys, trireid; print([m for m in ('torch', 'timm', 'pydantic', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(trireid.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {name: f"trireid.{home}.{name}" for name, home in trireid._HOMES.items()}
    assert typed == lazy
