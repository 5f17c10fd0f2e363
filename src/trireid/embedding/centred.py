"""Embeddings less the mean of each camera, for a set that is compared with itself. No torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from trireid.embedding.embeddings import Embeddings


def centred_by_camera(embeddings: Embeddings) -> Embeddings:
    """The same items with the mean vector of their camera subtracted, see `Embeddings.centred_by_camera`."""
    blocks = embeddings.model.blocks
    filled = np.stack([embeddings.present[:, list(block)].any(axis=1) for block in blocks], axis=1)  # (n, K)
    parts = np.array(embeddings.vectors, dtype=np.float64).reshape(len(embeddings), len(blocks), -1)  # (n, K, D / K)
    _, group = np.unique([repr(item.camera) for item in embeddings.items], return_inverse=True)
    own_print = hashlib.sha256(f"{embeddings.model.fingerprint} centred by camera".encode())
    for number in range(int(group.max(initial=-1)) + 1):
        own = group == number
        count = filled[own].sum(axis=0)  # (K,)
        total = (parts[own] * filled[own, :, None]).sum(axis=0)
        mean = total / np.maximum(count, 1)[:, None]
        parts[own] -= mean
        own_print.update(mean.astype("<f4").tobytes())
    vectors = (parts * filled[..., None]).reshape(embeddings.vectors.shape).astype(np.float32)
    model = embeddings.model
    # Vectors that depend on the whole set are of no model that another set was embedded or centred by.
    about = f"{model.description}, centred by camera"
    described = replace(model, fingerprint=own_print.hexdigest(), description=about, centring="camera")
    return replace(embeddings, vectors=vectors, model=described)
