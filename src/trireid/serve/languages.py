"""In which language a page speaks, and its texts with what they say about one case put in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trireid.serve.texts_chinese import CHINESE
from trireid.serve.texts_english import ENGLISH

LANGUAGE_COOKIE = "trireid_language"
TABLES: Mapping[str, Mapping[str, str]] = {"en": ENGLISH, "zh": CHINESE}
NAMES = {"en": "English", "zh": "中文"}
LONGEST_HEADER = 500


@dataclass(frozen=True)
class Language:
    """The texts of one language.

    Attributes:
        code: as in the attribute `lang` of HTML.
    """

    code: str

    def __call__(self, key: str, /, **values: Any) -> str:
        """A text by its key, with values put in."""
        text = TABLES[self.code][key]
        return text.format(**values) if values else text

    def count(self, number: int) -> str:
        """A whole number with its thousands apart."""
        return f"{number:,}"


def choose_language(*, chosen: str, cookie: str, accepted: str) -> Language:
    """The language of a page.

    Args:
        chosen: by the switch of this page; empty: not now.
        cookie: chosen before.
        accepted: the header Accept-Language.

    Example:
        >>> choose_language(chosen="", cookie="", accepted="zh-CN,zh;q=0.9,en;q=0.8").code
        'zh'
        >>> choose_language(chosen="", cookie="en", accepted="zh").code
        'en'
    """
    for code in (chosen, cookie):
        if code in TABLES:
            return Language(code)
    return Language(next((code for code in _by_weight(accepted[:LONGEST_HEADER]) if code in TABLES), "en"))


def _by_weight(accepted: str) -> list[str]:
    """The languages of the header, most liked first; what is not as RFC 9110 says counts last."""
    weighed = []
    for number, part in enumerate(accepted.split(",")):
        name, _, parameter = part.partition(";")
        try:
            weight = float(parameter.strip().removeprefix("q=") or 1.0)
        except ValueError:
            weight = 0.0
        weighed.append((-weight, number, name.strip().lower().partition("-")[0]))
    return [name for weight, _, name in sorted(weighed) if weight < 0]
