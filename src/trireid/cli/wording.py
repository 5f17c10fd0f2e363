"""The language that messages speak: settings by the names of trireid, or by the keys of upstream in its two scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Words = Callable[[str], str]
_words: ContextVar[Words] = ContextVar("words", default=str)


@contextmanager
def speaking(words: Words) -> Iterator[None]:
    """Pass errors, notes and the log through a translation for a while."""
    token = _words.set(words)
    try:
        yield
    finally:
        _words.reset(token)


def in_own_words(text: str) -> str:
    """A message in the language of the command that runs."""
    return _words.get()(text)
