"""The errors a user can cause. The command line prints their one line and exits with code 2."""

from __future__ import annotations

import unicodedata


class TrireidError(Exception):
    """Base of every error that a user's input can cause: what was given, what is allowed, what to do."""


class ConfigError(TrireidError):
    """A setting that does not exist, has no meaning here or lies outside its range."""


class DataError(TrireidError):
    """A data set that cannot be read as its format says: names, folders, images, splits."""


class CheckpointError(TrireidError):
    """A checkpoint or weight file that is damaged or does not fit the model."""


class InputError(TrireidError, ValueError):
    """A tensor or argument given to a public function that has the wrong shape or value."""


class RunError(TrireidError):
    """A run folder that cannot be written, resumed or read."""


def printable(text: str, *, limit: int | None = 300) -> str:
    """Foreign text for a message: one line of bounded length, without characters that a terminal would interpret.

    Args:
        text: a name, path or value that a user or a file gave.
        limit: characters; None keeps all.
    """
    if not text.isprintable():
        text = "".join(letter if _can_be_shown(letter) else ascii(letter)[1:-1] for letter in text)
    return text if limit is None or len(text) <= limit else f"{text[: limit - 3]}..."


def printable_lines(text: str, *, indent: str = "", limit: int | None = None) -> str:
    """Text of several lines that a terminal can be given, whatever names of others it holds.

    Args:
        text: for the terminal.
        indent: before all lines but the first, so that none of them passes for a message of its own.
        limit: characters of a line; None keeps all.
    """
    return f"\n{indent}".join(printable(line, limit=limit) for line in text.split("\n"))


def _can_be_shown(letter: str) -> bool:
    """Printable, or one of the kinds of space and of joiner that names are written with."""
    return letter.isprintable() or unicodedata.category(letter) == "Zs" or letter in "\u200c\u200d"
