"""What gallery, service and export need of a thing that embeds, whatever computes in it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from trireid.embedding.embeddings import Embeddings, ModelIdentity
from trireid.embedding.items import Item


class ItemEmbedder(Protocol):
    """Images in, features out.

    Attributes:
        model: what makes the vectors.
        modalities: that the model reads; images of others are not opened.
    """

    model: ModelIdentity
    modalities: tuple[str, ...]

    def embed(
        self, items: Iterable[Item | Mapping[str, Any]], *, progress: bool = False, skip_bad: bool = False
    ) -> Embeddings:
        """Embed items; a mapping `{"rgb": path_or_array, ...}` is an item about which nothing else is known.

        With `skip_bad`, items that cannot be read are left out with a warning.
        """
