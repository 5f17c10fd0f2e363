"""Centring by camera in a gallery: the mean of the items of each camera is subtracted from them, and from queries.

The means are of the gallery as a whole (it is transductive). A gallery that grew or shrank would have others, which all
stored vectors would have to follow; it is therefore filled once. Shapes: n items, K blocks, C cameras, D channels.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trireid.errors import InputError, RunError, printable
from trireid.gallery.layout import same_modalities

if TYPE_CHECKING:
    from trireid.embedding.embeddings import Embeddings
    from trireid.gallery.about import About
    from trireid.gallery.engine import Engine

STORED_AS = "camera means"
"""Name of their text in the engine; written last, so that a gallery with means has all of its items."""
_log = logging.getLogger(__name__)
_ROWS = 4096
_AGAIN = "make another one of all items: trireid gallery add OTHER INPUT... --create --centring camera"


@dataclass(frozen=True, eq=False)
class CameraMeans:
    """Means of the features of each camera, of each block over the items that have it.

    Attributes:
        cameras: names, `None` for items of unknown camera, which count as one camera.
        mean: `(C, K, D / K)` float32.
        count: `(C, K)` int64, the items that each mean is of.
    """

    cameras: tuple[str | None, ...]
    mean: NDArray[np.float32]
    count: NDArray[np.int64]

    @classmethod
    def of(cls, embeddings: Embeddings) -> CameraMeans:
        """The means of some items, which are read part by part."""
        cameras = tuple(sorted({item.camera for item in embeddings.items}, key=lambda name: (name is None, name or "")))
        filled, group = _filled(embeddings), _numbers(cameras, [item.camera for item in embeddings.items])
        count = np.zeros((len(cameras), filled.shape[1]), dtype=np.int64)
        np.add.at(count, group, filled)
        total = np.zeros((*count.shape, embeddings.vectors.shape[1] // filled.shape[1]))
        for start in range(0, len(embeddings), _ROWS):
            rows = slice(start, start + _ROWS)
            parts = np.asarray(embeddings.vectors[rows], dtype=np.float64).reshape(-1, *total.shape[1:])
            np.add.at(total, group[rows], parts * filled[rows, :, None])
        return cls(cameras, (total / np.maximum(count, 1)[..., None]).astype(np.float32), count)

    def subtract(self, embeddings: Embeddings) -> Embeddings:
        """The same items less the means of their cameras.

        Raises:
            InputError: there is no mean for the camera of an item, or nothing is left of a modality.
        """
        known = set(self.cameras)
        strange = next((item for item in embeddings.items if item.camera not in known), None)
        if strange is not None:
            raise InputError(
                f"item {printable(repr(strange.key), limit=80)} has {_named(strange.camera)}, and the gallery is "
                f"centred by camera and has means of {', '.join(_named(name) for name in self.cameras[:8])}"
                f"{', ...' if len(known) > 8 else ''} alone: give the camera that it was seen by"
            )
        filled, group = _filled(embeddings), _numbers(self.cameras, [item.camera for item in embeddings.items])
        lacking = filled & (self.count[group] == 0)
        if lacking.any():
            row = int(np.flatnonzero(lacking.any(axis=1))[0])
            raise InputError(
                f"item {printable(repr(embeddings.items[row].key), limit=80)} has a modality that no item of "
                f"{_named(embeddings.items[row].camera)} has in the gallery, which is centred by camera: leave it out"
            )
        parts = np.asarray(embeddings.vectors, dtype=np.float32).reshape(len(embeddings), *self.mean.shape[1:])
        centred = (parts - self.mean[group]) * filled[..., None]  # (n, K, D / K)
        empty = filled & ~centred.any(axis=2)  # (n, K)
        nothing = np.stack([empty[:, blocks].all(axis=1) for blocks in same_modalities(embeddings.model.blocks)])
        for row in np.flatnonzero(nothing.any(axis=0))[:1]:
            item, few = embeddings.items[row], int(self.count[group[row]].max())
            raise InputError(
                f"item {printable(repr(item.key), limit=80)} is its own mean, so that centring by camera leaves "
                f"nothing of it ({_named(item.camera)} has {few} item{'s' if few > 1 else ''}): leave such items out, "
                "or use centring none or train"
            )
        return replace(embeddings, vectors=centred.reshape(len(embeddings), -1))

    def text(self) -> str:
        """For the engine."""
        return json.dumps(
            {
                "cameras": self.cameras,
                "shape": self.mean.shape,
                "mean": base64.b64encode(self.mean.astype("<f4").tobytes()).decode(),
                "count": self.count.tolist(),
            }
        )


def read_means(engine: Engine, about: About) -> CameraMeans | None:
    """The means of a gallery, None where it is not centred by camera.

    Raises:
        RunError: it was not filled to its end.
    """
    if about.centring != "camera":
        return None
    text = engine.read_text(STORED_AS)
    if text is None:
        raise RunError(
            "the gallery is centred by camera and was not filled, or not to its end: add all of its items (trireid "
            "gallery add GALLERY INPUT...)"
        )
    found = json.loads(text)
    mean = np.frombuffer(base64.b64decode(found["mean"]), dtype="<f4").reshape(found["shape"])
    return CameraMeans(tuple(found["cameras"]), mean, np.array(found["count"], dtype=np.int64))


def check_changes(engine: Engine, about: About, *, first: bool = False) -> None:
    """Refuse to change the items of a gallery that is centred by camera.

    Args:
        engine, about: of the gallery.
        first: items are added, which may be done once to the end.

    Raises:
        InputError: it is centred by camera.
    """
    if about.centring != "camera" or (first and takes_items(engine, about)):
        return
    raise is_full()


def takes_items(engine: Engine, about: About) -> bool:
    """Whether items can be added: not where a gallery is centred by camera and has been filled to its end."""
    return about.centring != "camera" or engine.read_text(STORED_AS) is None


def make_room(engine: Engine, about: About, keys: Set[str]) -> None:
    """Remove what a filling left that did not end, before a gallery that is centred by camera is filled again.

    Args:
        engine, about: of the gallery.
        keys: of the items that it is filled with; where they are there already, they are replaced.

    Raises:
        RunError: there are others on a server, where another process may be filling it.
    """
    if about.centring != "camera":
        return
    left = [row["key"] for page in engine.scan("") for row in page if row["key"] not in keys]
    if not left:
        return
    what = f"{len(left):,} items, which are not among those given, of a filling that did not end"
    if not engine.embedded:
        raise RunError(
            f"the gallery is centred by camera and holds {what}: give all items of that filling, or make the gallery "
            "under another name"
        )
    _log.warning("removed %s", what)
    engine.delete(left)


def is_full() -> InputError:
    """What a gallery that is centred by camera answers to a change of its items."""
    return InputError(
        f"the gallery is centred by camera, with means of all of its items, which would change with each item: {_AGAIN}"
    )


def described(means: CameraMeans) -> str:
    """What a reader of distances must know."""
    return (
        f"centred by camera: the mean feature of each of {len(means.cameras)} cameras of the gallery is subtracted, so "
        "distances depend on the gallery as a whole (transductive)"
    )


def _named(camera: str | None) -> str:
    return "an unknown camera" if camera is None else f"camera {printable(repr(camera), limit=40)}"


def _numbers(cameras: Sequence[str | None], names: Sequence[str | None]) -> NDArray[np.int64]:
    number = {camera: row for row, camera in enumerate(cameras)}
    return np.array([number[name] for name in names], dtype=np.int64)


def _filled(embeddings: Embeddings) -> NDArray[np.bool_]:
    blocks = embeddings.model.blocks
    return np.stack([embeddings.present[:, list(block)].any(axis=1) for block in blocks], axis=1)  # (n, K)
