"""The names of settings in messages: those of trireid or, in the two scripts of upstream, the keys of upstream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Words = Callable[[str], str]
_words: ContextVar[Words] = ContextVar("words", default=str)


@contextmanager
def translated(words: Words) -> Iterator[None]:
    """Translate errors, notes and log lines while the block runs."""
    token = _words.set(words)
    try:
        yield
    finally:
        _words.reset(token)


def in_words_of_command(text: str) -> str:
    """A message with the names that the running command uses."""
    return _words.get()(text)
