"""Phrases that a reader stumbles over must not return. The list is short on purpose: reading is the work."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PHRASES = (
    r"recognises again",
    r"no fair figure",
    r"hoped for",
    r"\basked: \d",
    r"\bthe bar of\b",
    r"\bNone for none\b",
    r"\bare asked for\b",
    r"\ba line an epoch\b",
    r"\bGMACs? a triplet\b",
    r"\bms a batch\b",
    r"zeros are an image too",
    r"is no loss to learn from",
    r"nothing of it is believed",
    r"\bcontract\b",
    r"\bin an earlier state\b",
)
PATTERN = re.compile("|".join(PHRASES))
TEXTS = sorted(
    path
    for folder in ("src/trireid", "docs", "configs", "examples", "benchmarks", ".github")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".md", ".yaml", ".yml", ".sh", ".jinja"}
)
TEXTS += [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_odd_phrase_returns(path):
    text = " ".join(path.read_text(encoding="utf-8").split())
    assert PATTERN.findall(text) == []
