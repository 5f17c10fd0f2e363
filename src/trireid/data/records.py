"""What a reader returns: records of image triplets by split, and faults. It holds no pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trireid.errors import printable

if TYPE_CHECKING:
    from trireid.types import Protocol

LONGEST_MESSAGE = 2000  # characters


@dataclass(frozen=True)
class ImageSource:
    """Where the pixels of one modality are: a file, or a range of columns of a file (RGBNT100 strips).

    Attributes:
        path: image file.
        columns: (first, one past the last) pixel column, or None for the whole width.
    """

    path: Path
    columns: tuple[int, int] | None = None


@dataclass(frozen=True)
class Record:
    """One triplet: an object seen at one moment in up to three spectra.

    Attributes:
        name: short name for messages and rank lists, unique within its split.
        images: one source per modality in the order of `trireid.types.MODALITIES`; None where absent.
        identity, camera, scene: as written in the name or table (camera and scene are None if not known).
        columns: what else a table says of it, as (name of the column, value), such as a weather or a day; values that
            are not known are left out.
        orientation: how the pixels are rotated after decoding, 0 to 7, see `trireid.data.orientations.orient`.

    Example:
        >>> images = (ImageSource(Path("rgb/1.jpg")), None, ImageSource(Path("tir/1.jpg")))
        >>> record = Record("1", images, identity="0001", camera="2")
        >>> [source is not None for source in record.images]
        [True, False, True]
    """

    name: str
    images: tuple[ImageSource | None, ...]
    identity: str
    camera: str | None = None
    scene: str | None = None
    orientation: int = 0
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a data set on disk.

    Attributes:
        kind: short machine-readable name, for example "missing_modality", "bad_name", "unreadable_image".
        path: the file or folder concerned.
        message: what is wrong and what to do, one line.
    """

    kind: str
    path: Path
    message: str

    def __post_init__(self) -> None:
        """Keep the message one printable line: it holds file names and cells of unknown origin."""
        object.__setattr__(self, "message", printable(self.message, limit=LONGEST_MESSAGE))


@dataclass(frozen=True)
class ImageFacts:
    """Facts about a decoded image file.

    Attributes:
        format: such as `JPEG`.
        dtype: data type of its values, such as `uint16`.
        orientation: its EXIF or TIFF tag, 1 if it has none; already applied.
        size: (height, width), upright.
        flat: whether every pixel has the same value.
    """

    format: str
    dtype: str
    orientation: int
    size: tuple[int, int]
    flat: bool

    @property
    def deep(self) -> bool:
        """True if its values have more than 8 bits, so that a range is needed to show it."""
        return self.dtype != "uint8"


@dataclass(frozen=True)
class DatasetIndex:
    """A data set as read from disk: sorted records, the protocol, and every fault.

    Attributes:
        format: reader name ("rgbnt201", ..., "csv").
        train, query, gallery: sorted records. If query and gallery are one set, they are one tuple object.
        protocol: exclusion rule of the ranking.
        faults: what is wrong; the triplets concerned are not among the records.
        notes: what was read in an unusual way, one line each.
        published: counts to print beside the found ones, {"train": (triplets, identities), ...}; empty if unknown.
        facts: facts of every readable image file; empty if the images were not decoded.
    """

    format: str
    root: Path
    train: tuple[Record, ...]
    query: tuple[Record, ...]
    gallery: tuple[Record, ...]
    protocol: Protocol
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    published: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    facts: Mapping[Path, ImageFacts] = field(default_factory=dict)

    @property
    def query_is_gallery(self) -> bool:
        """True if one set is both query and gallery (RGBNT201): its features are computed once."""
        return self.query is self.gallery
