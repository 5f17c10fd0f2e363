"""Raise torch's limits on the number of compiled forms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def room_to_compile(num_models: int = 1) -> Iterator[None]:
    """Let the blocks of this many models be compiled in one process, each for up to 16 token counts and modes.

    torch compiles one piece of code 8 times, whatever the models it is of, and runs it plain from then on without a
    word: a model with three cuts, or a later model of a long comparison, would not be what it says.
    """
    import torch._dynamo.config as dynamo  # takes more than a second, which only compilation is worth

    with dynamo.patch(recompile_limit=16 * max(1, num_models)):
        yield
