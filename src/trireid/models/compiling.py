"""What is different while torch compiles or exports a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def room_to_compile(num_models: int = 1) -> Iterator[None]:
    """Let the blocks of this many models be compiled in one process, each for up to 16 token counts and modes.

    torch compiles one piece of code 8 times, whatever the models it is of, and runs it plain from then on without a
    word: a model with three cuts, or a later model of a long comparison, would not be what it says.
    """
    import torch._dynamo.config as dynamo  # takes more than a second, which only compilation is worth

    with dynamo.patch(recompile_limit=16 * max(1, num_models)):
        yield


def is_exporting() -> bool:
    """Whether the model is being turned into a graph for use elsewhere.

    Such a graph has no Python in it: it can neither look at a value to refuse it nor skip absent images.
    """
    asked = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 knows the second alone
    return bool(asked())
