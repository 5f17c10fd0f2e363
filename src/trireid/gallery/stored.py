"""Items out of a gallery again, with their features: to keep what is removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trireid.embedding.embeddings import Embeddings
from trireid.gallery.gallery import Gallery
from trireid.gallery.layout import names_of
from trireid.names import MODALITIES


def stored_embeddings(gallery: Gallery, keys: Sequence[str]) -> Embeddings:
    """Items with their features at unit length: adding them again gives the distances that they had.

    Args:
        gallery: that has them.
        keys: in the order of the result.

    Raises:
        InputError: a key is not there.
    """
    items = gallery.get(keys)
    layout = gallery._about.layout
    rows = gallery._engine.fetch(list(keys), width=layout.row_width)
    codes = [int(rows[key]["presence"]) for key in keys]
    vectors = [layout.features(rows[key]["vector"][None], code)[0] for key, code in zip(keys, codes, strict=True)]
    present = [[name in names_of(code) for name in MODALITIES] for code in codes]
    return Embeddings(
        vectors=np.stack(vectors).astype(np.float32),
        present=np.array(present, dtype=np.bool_),
        items=tuple(items),
        model=gallery.model,
    )
