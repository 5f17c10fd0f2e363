"""What is embedded: an object seen at one moment in up to three spectra, with what is known about it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the full frame; right and bottom are one past the last pixel."""


@dataclass(frozen=True, slots=True)
class Item:
    """One object at one moment: its images by modality, and what is known about it.

    Attributes:
        images: by modality name (`rgb`, `nir`, `tir`), any non-empty subset: the path of a file, a numpy array
            `(h, w)` or `(h, w, 3)`, a PIL image, or a tensor `(3, h, w)` or `(1, h, w)`. An item that comes back from
            an embedding keeps only its paths.
        key: unique text by which a gallery knows the item; None: its number in the call.
        identity: which object it is; None where not known.
        camera: None where not known.
        scene: None where not known.
        time: seconds since 1970-01-01 UTC; None where not known.
        box: where the object is in the full frame, for all modalities or by modality; None: the whole image.
        quality: weight above 0 of this item where several become one, see `aggregate`; None: 1.
        metadata: any further facts, as JSON.
    """

    images: Mapping[str, Any]
    key: str | None = None
    identity: str | None = None
    camera: str | None = None
    scene: str | None = None
    time: float | None = None
    box: Box | Mapping[str, Box] | None = None
    quality: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
