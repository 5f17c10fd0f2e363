"""16-bit colour PNG without loss: Pillow keeps 8 bits per channel, and torchvision ends the process on damage."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHANNELS = {2: 3, 4: 2, 6: 4}


def deep_colour(data: bytes) -> NDArray[np.uint16]:
    """The values `(h, w, channels)` of a 16-bit PNG of 2 to 4 channels.

    Raises:
        ValueError: a chunk is damaged or missing, or the image is interlaced.
    """
    width, height, _, kind, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if interlaced:
        raise ValueError("interlaced 16-bit colour: save it without interlacing")
    pixel_bytes = 2 * _CHANNELS[kind]
    size = height * (1 + width * pixel_bytes)
    inflate = zlib.decompressobj()
    packed = b"".join(content for name, content in _chunks(data) if name == b"IDAT")
    rows = inflate.decompress(packed, size)
    if len(rows) != size or not (inflate.eof or inflate.decompress(inflate.unconsumed_tail, 1) == b""):
        raise ValueError("the length of its data does not fit its size")
    filtered = np.frombuffer(rows, dtype=np.uint8).reshape(height, 1 + width * pixel_bytes)
    plain = unfilter(filtered[:, 0], filtered[:, 1:].reshape(height, width, pixel_bytes))
    return plain.view(">u2").astype(np.uint16)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of every chunk up to the last; a wrong checksum is a ValueError."""
    place, name = 8, b""
    while name != b"IEND":
        (length,) = struct.unpack(">I", data[place : place + 4])
        name, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        if zlib.crc32(name + content) != checksum:
            raise ValueError("a chunk has a wrong checksum")
        yield name, content
        place += 12 + length


def unfilter(kinds: NDArray[np.uint8], filtered: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo the filters of PNG: each byte is stored as its difference from a prediction by its neighbours.

    A pixel needs its left, upper and upper left neighbours, so all pixels of an antidiagonal are decoded at once.

    Args:
        kinds: `(h,)`, filter of each row: 0 none, 1 left, 2 up, 3 mean, 4 Paeth's predictor.
        filtered: `(h, w, bytes of a pixel)`.

    Raises:
        ValueError: a filter that does not exist.

    Source: ISO/IEC 15948 (PNG), section 9.
    """
    if kinds.max(initial=0) > 4:
        raise ValueError(f"a row has filter {kinds.max()}, which does not exist")
    height, width, pixel_bytes = filtered.shape
    plain: NDArray[Any] = np.zeros((height + 1, width + 1, pixel_bytes), dtype=np.int16)  # a border of zeros before
    for diagonal in range(height + width - 1):
        rows = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        columns = diagonal - rows
        left, up, corner = plain[rows + 1, columns], plain[rows, columns + 1], plain[rows, columns]
        guesses = (np.zeros_like(left), left, up, (left + up) // 2, _paeth(left, up, corner))
        guess = np.choose(kinds[rows][:, None], guesses)
        plain[rows + 1, columns + 1] = (filtered[rows, columns] + guess) % 256
    return np.ascontiguousarray(plain[1:, 1:].astype(np.uint8))


def _paeth(left: NDArray[Any], up: NDArray[Any], corner: NDArray[Any]) -> NDArray[Any]:
    """Whichever neighbour is nearest to `left + up - corner`; left before up before corner in a tie."""
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    nearest: NDArray[Any] = np.where(
        (to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner)
    )
    return nearest
