"""Why a match is one, drawn: the patches that the model kept, and the places that speak for the match."""

from __future__ import annotations

from typing import Any


def can_explain(embedder: Any) -> bool:
    """Whether the model can be looked into; one that was exported cannot."""
    return hasattr(embedder, "inputs")
