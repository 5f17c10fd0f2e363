"""Small pictures of items: those of uploads are kept beside the gallery, those of files are made when shown."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from trireid.data.formats import DecodeError, Values, decode
from trireid.data.ranges import to_8_bits
from trireid.files import UnreadableFileError, read_bytes, real_path, replacing, writing
from trireid.names import MODALITIES
from trireid.serve.schemas import Unshown

SIDE = 256
"""Pixels of the longer side of a thumbnail."""
MEDIA_TYPE = "image/webp"
_QUALITY = 80


def thumbnail(values: Values) -> bytes:
    """A small WebP picture of decoded values `(h, w)` or `(h, w, 3)`; deeper values by the range of the image."""
    image = Image.fromarray(to_8_bits(values, "file")).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    target = io.BytesIO()
    image.save(target, "WEBP", quality=_QUALITY)
    return target.getvalue()


class Media:
    """Thumbnails in a folder, under names that are hashes of key and modality: no text of a user becomes a path.

    Args:
        folder: of the thumbnails.
        root: folder below which the images of items may be read to show them; None: none are.
        max_pixels: of such an image.
    """

    def __init__(self, folder: Path, *, root: Path | None, max_pixels: int) -> None:
        self.folder = folder
        self.root = None if root is None else real_path(root)
        self.max_pixels = max_pixels

    def keep(self, key: str, pictures: Mapping[str, bytes]) -> None:
        """Write the thumbnails of an item by modality, each whole; those of other modalities go.

        Raises:
            RunError: the folder cannot be written.
        """
        for modality in MODALITIES:
            path = self._path(key, modality)
            if modality in pictures:
                with replacing(path) as temporary:
                    temporary.write_bytes(pictures[modality])
            else:
                path.unlink(missing_ok=True)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove the thumbnails of items that are gone."""
        with writing(self.folder):
            for key in keys:
                for modality in MODALITIES:
                    self._path(key, modality).unlink(missing_ok=True)

    def has(self, key: str, modality: str) -> bool:
        """Whether there is a thumbnail."""
        return self._path(key, modality).is_file()

    def kept(self, key: str) -> dict[str, bytes]:
        """The thumbnails of an item that are kept here, by modality."""
        return {name: self._path(key, name).read_bytes() for name in MODALITIES if self.has(key, name)}

    def picture(self, key: str, modality: str, images: Mapping[str, str]) -> bytes | None:
        """A small WebP picture of an item, None where there is none that may be shown.

        Args:
            key: of the item.
            modality: of the image.
            images: paths of the item's images by modality, relative to the root or absolute.
        """
        with suppress(FileNotFoundError):
            return self._path(key, modality).read_bytes()
        path = self._below_root(images.get(modality))
        if path is None:
            return None
        try:
            return thumbnail(decode(read_bytes(path), max_pixels=self.max_pixels).values)
        except (OSError, UnreadableFileError, DecodeError):
            return None

    def original(self, image: str | None) -> Values | None:
        """The values of an item's own file, None where it may not or cannot be read."""
        path = self._below_root(image)
        if path is None:
            return None
        try:
            return decode(read_bytes(path), max_pixels=self.max_pixels).values
        except (OSError, UnreadableFileError, DecodeError):
            return None

    def small_values(self, key: str, modality: str) -> Values | None:
        """The values of a thumbnail, None where there is none."""
        try:
            with Image.open(self._path(key, modality)) as image:
                return np.asarray(image.convert("RGB"))
        except FileNotFoundError:
            return None

    def can_show(self, key: str, modality: str, images: Mapping[str, str]) -> bool:
        """Whether `picture` has a file to make a picture of."""
        return self.has(key, modality) or (modality in images and self.why_not(images[modality]) is None)

    def why_not(self, image: str) -> Unshown | None:
        """Why the file of an image is not shown, None where it is."""
        if self.root is None:
            return "no_root"
        path = self._below_root(image)
        if path is None:
            return "outside_root"
        return None if path.is_file() else "no_file"

    def _below_root(self, image: str | None) -> Path | None:
        """The file of an image, None where it may not be read."""
        if self.root is None or image is None:
            return None
        path = real_path(self.root / image)
        return path if path.is_relative_to(self.root) else None

    def _path(self, key: str, modality: str) -> Path:
        name = hashlib.sha256(f"{modality}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / f"{name}.webp"
