"""Names of people's data as text of a figure: never a formula, never a control character, in a font that has it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font
from matplotlib.legend import Legend
from matplotlib.text import Text

_log = logging.getLogger(__name__)

WIDE_FONTS = (
    "Noto Sans CJK",
    "Source Han Sans",
    "WenQuanYi",
    "PingFang",
    "Hiragino Sans",
    "Microsoft YaHei",
    "SimHei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
)
"""How the names of fonts begin that have the letters of many scripts, Chinese, Japanese and Korean among them."""

_said: set[str] = set()


def shown(text: str) -> str:
    """A text with its control characters and broken bytes written out, which would move or end the line."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def add_legend(owner: Axes | Figure, handles: Sequence[Artist], names: Sequence[str], **options: Any) -> Legend:
    """A legend whose names are taken as they are: matplotlib leaves out `_name` and reads `$name$` as a formula."""
    legend = owner.legend(handles, [str(index) for index in range(len(names))], **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(shown(name))
    return legend


@contextmanager
def readable(figure: Figure) -> Iterator[None]:
    """Give the texts of a figure a font that has their letters while it is saved, and say once where there is none."""
    with warnings.catch_warnings():
        # Once a letter, with lines of source; what is missing was said below.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        texts = figure.findobj(Text)
        letters = {letter for text in texts if isinstance(text, Text) for letter in text.get_text()}
        families, missing = _fonts_for(frozenset(letters - set("\n")))
        if missing and not _said:
            _said.update(missing)
            _log.warning(
                "no installed font has the letters %s: pictures show boxes in their places; install one that has, such "
                "as Noto Sans CJK",
                "".join(sorted(missing)[:8]),
            )
        for text in texts if families else ():
            if isinstance(text, Text):
                text.set_fontfamily([*text.get_fontfamily(), *families])
        yield


@cache
def _fonts_for(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families to add to the usual one so that these letters can be drawn, and the letters that no font has."""
    missing = {letter for letter in letters if letter.isprintable()} - _letters_of(findfont(FontProperties()))
    families = []
    for entry in sorted(fontManager.ttflist, key=_order) if missing else ():
        found = missing & _letters_of(entry.fname)
        if found:
            families.append(entry.name)
            missing -= found
        if not missing:
            break
    return tuple(families), frozenset(missing)


@cache
def _letters_of(path: str) -> frozenset[str]:
    """The letters that a font file has; none where it cannot be read."""
    try:
        return frozenset(chr(code) for code in get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _order(entry: FontEntry) -> tuple[bool, bool, str]:
    """Fonts of many scripts first, upright ones of ordinary weight before others."""
    known = entry.name.startswith(WIDE_FONTS)
    ordinary = entry.style == "normal" and entry.weight in (400, "normal", "regular")
    return not known, not ordinary, entry.name
