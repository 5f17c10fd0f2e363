"""Check how labels are written: one spelling for each label, and no placeholder words for empty cells."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trireid.data.listing import MIXED_SPELLING, SplitRecords
from trireid.data.records import Fault
from trireid.errors import printable
from trireid.names import UNKNOWN

JUNK_IDENTITY = "-1"
"""Market-1501's mark of a detection without an identity: rankings ignore it, and it is not trained on."""

EMPTY_WORDS = frozenset({"nan", "none", "null", "nil", "n/a", "na", "<na>", "#n/a", "nat", "undefined", "-", "?"})
"""Words that programs and people write into an empty cell, in lower case."""

FIELDS = ("identity", "camera", "scene")
COLUMN_NAMES = {"identity": "id", "camera": "camera", "scene": "scene"}
NUM_SHOWN = 3

_WHOLE_NUMBER = re.compile(r"([+-]?)0*(\d+)(\.0*)?", re.ASCII)


def label_key(label: str) -> str:
    """A key that is equal for all spellings of one label: `1`, `01`, `1.0`, `+1`; composed and decomposed accents.

    Numbers with a fraction, with an exponent or with other characters stay as they are, because version-like
    scenes (`1.1`, `1.10`) and hexadecimal names (`1e5`) are different things.
    """
    text = unicodedata.normalize("NFKC", label)
    number = _WHOLE_NUMBER.fullmatch(text)
    if number is None:
        return text
    return f"-{number[2]}" if number[1] == "-" and number[2] != "0" else number[2]


def label_positions(names: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Positions by name, and by `label_key` if only one name has that key."""
    keys = Counter(map(label_key, names))
    unique = {label_key(name): index for index, name in enumerate(names) if keys[label_key(name)] == 1}
    return {name: index for index, name in enumerate(names)}, unique


def find_label(positions: tuple[dict[str, int], dict[str, int]], name: str) -> int:
    """A name as it is written, or the only one that is the same label in another spelling."""
    exact, unique = positions
    return exact.get(name, unique.get(label_key(name), UNKNOWN))


def is_junk(identity: str) -> bool:
    """Whether an identity is `-1`, the mark of a detection without an identity."""
    return label_key(identity) == JUNK_IDENTITY


def is_empty_word(label: str) -> bool:
    """Whether a label is a word for an empty cell, such as `nan`."""
    return label.lower() in EMPTY_WORDS


def mixed_spellings(splits: SplitRecords, root: Path) -> list[Fault]:
    """A fault for each field in which one label is written in several ways, over all splits.

    The spellings would count as different identities or cameras: an exclusion rule would miss items, and an identity
    could be in training and test.
    """
    faults = []
    for field in FIELDS:
        spellings: dict[str, dict[str, Counter[str]]] = {}
        for split, records in splits.distinct.items():
            for label in filter(None, (getattr(record, field) for record in records)):
                spellings.setdefault(label_key(label), {}).setdefault(label, Counter())[split] += 1
        mixed = [ways for _, ways in sorted(spellings.items()) if len(ways) > 1]
        if mixed:
            faults.append(Fault(MIXED_SPELLING, root, f"{root}: {_describe(COLUMN_NAMES[field], mixed)}"))
    return faults


def _describe(column: str, mixed: Sequence[dict[str, Counter[str]]]) -> str:
    def described(ways: dict[str, Counter[str]]) -> str:
        parts = []
        for label, counts in sorted(ways.items()):
            where = ", ".join(f"{number} in {split}" for split, number in counts.items())
            parts.append(f"'{printable(label, limit=60)}' ({where})")
        return " and ".join(parts)

    more = f"; and {len(mixed) - NUM_SHOWN} more" if len(mixed) > NUM_SHOWN else ""
    return (
        f"the same {column} is written in different ways: {'; '.join(map(described, mixed[:NUM_SHOWN]))}{more}; use "
        "one spelling for each, or different names for different things (an empty cell in a column of "
        "whole numbers can turn 1 into 1.0)"
    )


def without_junk(splits: SplitRecords) -> SplitRecords:
    """Leave out the triplets of identity `-1` (junk), with a note that counts them."""
    found = {name: sum(is_junk(record.identity) for record in records) for name, records in splits.distinct.items()}
    if not any(found.values()):
        return splits

    counts = ", ".join(f"{number} in {name}" for name, number in found.items() if number)
    line = f"identity -1 marks junk: its triplets are left out ({counts}), and rankings ignore them"
    kept = splits.filtered(lambda record: not is_junk(record.identity))
    return replace(kept, notes=(*splits.notes, line))
