"""A model and a gallery with the interfaces of the real ones in a few lines, so that tests of the API are fast."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np

from trireid.embedding.embeddings import Embeddings, ModelIdentity
from trireid.embedding.items import Item
from trireid.errors import InputError
from trireid.gallery.results import Added, GalleryInfo, Match, QueryResult
from trireid.names import MODALITIES

MODEL = ModelIdentity("f" * 64, "joint", ((0,), (1,), (2,)), 9, "a fake", "0")


class FakeEmbedder:
    """Three numbers of each modality: mean, spread and a constant."""

    model = MODEL
    modalities = MODALITIES

    def __init__(self, seconds=0.0):
        self.seconds, self.batches = seconds, []

    def embed(self, items, *, progress=False):
        items = list(items)
        time.sleep(self.seconds)
        self.batches.append(len(items))
        vectors, present = np.zeros((len(items), 3, 3), np.float32), np.zeros((len(items), 3), bool)
        for row, item in enumerate(items):
            for column, name in enumerate(MODALITIES):
                if name in item.images:
                    values = np.asarray(item.images[name], dtype=np.float64)
                    if values.shape[0] == 13:
                        raise InputError(f"item {item.key} has 13 rows, which this model does not take")
                    present[row, column] = True
                    vectors[row, column] = values.mean() / 255, values.std() / 255, 1.0
        return Embeddings(vectors.reshape(-1, 9), present, tuple(replace(item, images={}) for item in items), MODEL)


class FakeGallery:
    """Items in a dictionary; one writer at a time, or it complains."""

    calibration = camera_means = None

    def __init__(self):
        self.rows, self.writing, self.closed = {}, threading.Lock(), False

    def _write(self):
        assert self.writing.acquire(blocking=False), "two writers at once"

    def add(self, embeddings):
        self._write()
        for item in embeddings.items:
            if any(ord(letter) < 32 for letter in item.key):
                self.writing.release()
                raise InputError(f"item {item.key!r}: key holds a control character; remove it")
        replaced = sum(item.key in self.rows for item in embeddings.items)
        for item, vector, present in zip(embeddings.items, embeddings.vectors, embeddings.present, strict=True):
            self.rows[item.key] = (item, vector, present)
        self.writing.release()
        return Added(len(embeddings) - replaced, replaced)

    def _relabel(self, keys, identity):
        self._write()
        for key in keys:
            item, *rest = self.rows[key]
            self.rows[key] = (replace(item, identity=identity), *rest)
        self.writing.release()
        return len(keys)

    def label(self, keys, identity):
        return self._relabel(keys, identity)

    def unlabel(self, keys):
        return self._relabel(keys, None)

    def remove(self, where):
        self._write()
        gone = [key for key in self.rows if self._fits(key, where)]
        for key in gone:
            del self.rows[key]
        self.writing.release()
        return len(gone)

    def _fits(self, key, where):
        if where is None:
            return True
        item = self.rows[key][0]
        return (
            (where.cameras is None or item.camera in where.cameras)
            and (where.identities is None or item.identity in where.identities)
            and (where.keys is None or key in where.keys)
        )

    def get(self, keys):
        return [self.rows[key][0] for key in keys if key in self.rows]

    def list(self, where=None, *, after=None, limit=100):
        keys = sorted(key for key in self.rows if self._fits(key, where) and (after is None or key > after))
        return [self.rows[key][0] for key in keys[:limit]]

    def count(self, where=None):
        return len([key for key in self.rows if self._fits(key, where)])

    def query(self, queries, *, top=10, where=None, threshold=None, **others):
        if not isinstance(queries, Embeddings):
            return [self._nearest(key, self.rows[key][1], top, where, threshold) for key in queries]
        pairs = zip(queries.items, queries.vectors, strict=True)
        return [self._nearest(item.key, vector, top, where, threshold) for item, vector in pairs]

    def _nearest(self, key, vector, top, where, threshold):
        found = []
        for other, (item, own, _) in self.rows.items():
            if self._fits(other, where):
                cosine = float(vector @ own / np.linalg.norm(vector) / np.linalg.norm(own))
                found.append((max(0.0, 2 - 2 * cosine) ** 0.5, other, cosine, item))
        matches = tuple(
            Match(
                key=other,
                identity=item.identity,
                distance=distance,
                accepted=None if threshold is None else distance <= threshold,
                similarity=cosine,
                compared=MODALITIES,
                camera=item.camera,
                scene=item.scene,
                time=item.time,
                metadata=item.metadata,
            )
            for distance, other, cosine, item in sorted(found, key=lambda each: each[:2])[:top]
        )
        known = None if threshold is None else bool(matches) and matches[0].distance <= threshold
        return QueryResult(key, matches, known, threshold)

    def info(self):
        return GalleryInfo(
            "gallery", "memory", len(self.rows), {}, MODEL, True, None, "2026", "0", None, 0, calibrated=False
        )

    def close(self):
        self.closed = True


def picture(seed=0, size=(16, 8), format="PNG"):
    """An encoded image of random colours."""
    import io

    from PIL import Image

    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(values).save(target, format)
    return target.getvalue()


__all__ = ["MODEL", "FakeEmbedder", "FakeGallery", "Item", "picture"]
