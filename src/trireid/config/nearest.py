"""The name that a user most likely meant, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest_name(given: str, allowed: Sequence[str], *, cutoff: float = 0.5) -> str | None:
    """The shortest of up to three names that the given one begins, or else the most similar one; None if none is.

    Args:
        given: by the user; upper and lower case are the same.
        allowed: all names.
        cutoff: the smallest similarity, as of `difflib`.
    """
    lowered = {name.lower(): name for name in allowed}
    begun = [name for name in lowered if given and name.startswith(given.lower())]
    if 1 <= len(begun) <= 3:
        return lowered[min(begun, key=len)]
    close = difflib.get_close_matches(given.lower(), list(lowered), n=1, cutoff=cutoff)
    return lowered[close[0]] if close else None
