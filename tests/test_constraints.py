"""Pinned versions: all that are installed here can be installed on the oldest Python that the package supports."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]


def pinned():
    """Name and the Python versions of each pinned package that is installed; extras may be absent."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([\w.-]+)==", line):
            try:
                yield found[1], distribution(found[1]).metadata.get("Requires-Python", "")
            except PackageNotFoundError:
                continue


def test_pinned_versions_install_on_the_oldest_python():
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    oldest = requires.removeprefix(">=") + ".0"
    packages = dict(pinned())
    assert len(packages) > 50
    assert [name for name, python in packages.items() if not SpecifierSet(python).contains(oldest)] == []
