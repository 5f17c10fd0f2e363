"""Every format gives the values that were written, upright; what a decoder only warns of is an error."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg

from trireid.data.formats import MAX_PIXELS, DecodeError, decode, is_deep, quiet_decoders
from trireid.data.images import ImageError, decode_image, is_deep_file

DEEP = np.random.default_rng(0).integers(0, 65536, (7, 9, 3)).astype(np.uint16)
GREY = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 50, np.ones((16, 16), dtype=np.uint8))


def pillow(values: np.ndarray, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def filter_row(kind: int, row: bytes, above: bytes, step: int) -> bytes:
    """One row as PNG stores it, by the definition of its five filters."""
    stored = bytearray([kind])
    for place, value in enumerate(row):
        left, corner = (row[place - step], above[place - step]) if place >= step else (0, 0)
        up = above[place]
        near = {abs(left + up - corner - other): other for other in (corner, up, left)}  # the last of a tie stays
        stored.append((value - (0, left, up, (left + up) // 2, near[min(near)])[kind]) % 256)
    return bytes(stored)


def colour_png(values: np.ndarray, *, interlaced: bool = False) -> bytes:
    """A 16-bit colour PNG, which Pillow cannot write; its rows take the filters in turn."""
    height, width, channels = values.shape
    rows = [row.astype(">u2").tobytes() for row in values]
    above = [bytes(len(rows[0])), *rows]
    stored = [filter_row(number % 5, row, above[number], 2 * channels) for number, row in enumerate(rows)]
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(stored))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def palette_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(GREY).convert("P").save(buffer, "TIFF")
    return buffer.getvalue()


def bilevel_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(GREY > 99).save(buffer, "TIFF", compression="group4")
    return buffer.getvalue()


FLOAT = (DEEP[..., 0] / 7).astype(np.float32)
RGB = {"photometric": "rgb"}
CASES = {
    "16-bit grey PNG": (pillow(DEEP[..., 0], "PNG"), DEEP[..., 0]),
    "16-bit colour PNG": (colour_png(DEEP), DEEP),
    "16-bit PNG with transparency": (colour_png(np.dstack([DEEP, DEEP[..., :1]])), DEEP),
    "16-bit grey PNG with transparency": (colour_png(DEEP[..., :2]), DEEP[..., 0]),
    "16-bit grey TIFF": (tiff(DEEP[..., 0]), DEEP[..., 0]),
    "big-endian TIFF": (tiff(DEEP[..., 0], byteorder=">"), DEEP[..., 0]),
    "LZW TIFF": (pillow(DEEP[..., 0], "TIFF", compression="tiff_lzw"), DEEP[..., 0]),
    "deflated colour TIFF": (tiff(DEEP, compression="zlib", **RGB), DEEP),
    "planes of a TIFF": (tiff(DEEP.transpose(2, 0, 1), planarconfig="separate", **RGB), DEEP),
    "float TIFF": (tiff(FLOAT), FLOAT),
    "float LZW TIFF": (pillow(FLOAT, "TIFF", compression="tiff_lzw"), FLOAT),
    "double TIFF": (tiff(FLOAT.astype(float)), FLOAT.astype(float)),
    "int32 TIFF": (tiff(DEEP[..., 0].astype(np.int32) - 70000), DEEP[..., 0].astype(np.int32) - 70000),
    "uint32 TIFF": (tiff(DEEP[..., 0].astype(np.uint32) * 65536), DEEP[..., 0].astype(np.uint32) * 65536),
    "int16 TIFF": (tiff(DEEP[..., 0].astype(np.int16)), DEEP[..., 0].astype(np.int16)),
    "int32 LZW TIFF": (
        pillow(DEEP[..., 0].astype(np.int32), "TIFF", compression="tiff_lzw"),
        DEEP[..., 0].astype(np.int32),
    ),
    "8-bit TIFF": (tiff(GREY), GREY),
    "8-bit LZW TIFF": (pillow(GREY, "TIFF", compression="tiff_lzw"), GREY[..., None].repeat(3, axis=2)),
    "TIFF where white is zero": (tiff(GREY, photometric="miniswhite"), 255 - GREY[..., None].repeat(3, axis=2)),
    "palette TIFF": (palette_tiff(), GREY[..., None].repeat(3, axis=2)),
    "bilevel TIFF": (bilevel_tiff(), (GREY > 99)[..., None].repeat(3, axis=2).astype(np.uint8) * 255),
    "BigTIFF": (tiff(DEEP[..., 0], bigtiff=True), DEEP[..., 0]),
    "BMP": (pillow(GREY, "BMP"), GREY[..., None].repeat(3, axis=2)),
    "WebP": (pillow(GREY, "WEBP", lossless=True), GREY[..., None].repeat(3, axis=2)),
    "NPY": (npy(DEEP), DEEP),
    "grey NPY of one channel": (npy(FLOAT[..., None]), FLOAT),
    "big-endian NPY by columns": (npy(np.asfortranarray(DEEP[..., 0].astype(">i4"))), DEEP[..., 0].astype(np.int32)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_values_are_those_that_were_written(case: str) -> None:
    data, expected = CASES[case]
    with quiet_decoders():
        image = decode(data)
    assert image.values.dtype == expected.dtype
    np.testing.assert_array_equal(image.values, expected)
    assert image.facts.size == expected.shape[:2]
    assert image.facts.deep == (expected.dtype != np.uint8) == is_deep(data[:32], lambda: data)
    assert not image.facts.flat


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_are_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = {"PNG": GREY.astype(np.uint16) * 200, "TIFF": GREY.astype(np.uint16) * 200}
    for values in (GREY, deep.get(format, GREY)):
        options = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "JPEG" else {}
        data = pillow(values, format, exif=exif, **options)
        seen = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
        image = decode(data)
        shown = image.values if image.values.ndim == 2 else image.values[..., 0]
        shown, seen = shown.astype(int), seen if seen.ndim == 2 else seen[..., 0]
        assert shown.shape == seen.shape
        assert np.abs(shown - seen).max() <= 2
        assert image.facts.orientation == orientation


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
def test_jpeg_pixels_are_those_of_torchvision(options: dict[str, object]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (37, 51, 3)).astype(np.uint8)
    for image in (
        Image.fromarray(pixels),
        Image.fromarray(pixels).convert("L"),
        Image.fromarray(pixels).convert("CMYK"),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88, **options)
        read = decode_jpeg(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8), mode=ImageReadMode.RGB)
        assert np.array_equal(decode(buffer.getvalue()).values, read.permute(1, 2, 0).numpy())


def damaged_jpegs() -> dict[str, bytes]:
    noisy = np.random.default_rng(0).integers(0, 256, (64, 48, 3)).astype(np.uint8)
    good = pillow(noisy, "JPEG", quality=90)
    half, size = len(good) // 2, len(good)
    at = good.index(b"\xff\xc0") + 5
    return {
        "a zero tail": good[:half] + bytes(size - 2 - half) + good[-2:],
        "a 0xff tail": good[:half] + b"\xff" * (size - 2 - half) + good[-2:],
        "zeros in the middle": good[:half] + bytes(half // 2) + good[half + half // 2 :],
        "a missing piece": good[:half] + good[half + 400 :],
        "zeros to the end": good[:half] + bytes(size - half),
        "a header of 4000 x 4000": good[:at] + (4000).to_bytes(2, "big") * 2 + good[at + 4 :],
        "a header of 65500 x 65500": good[:at] + (65500).to_bytes(2, "big") * 2 + good[at + 4 :],
    }


@pytest.mark.parametrize("damage", damaged_jpegs())
def test_what_a_jpeg_decoder_warns_of_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    path = tmp_path / "damaged.jpg"
    path.write_bytes(damaged_jpegs()[damage])
    with pytest.raises(ImageError, match=r"damaged\.jpg: .*(JPEG|pixels).*; replace the file") as caught:
        decode_image(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # nothing in the decoder's own words


SHORT = (3).to_bytes(2, "little") + (1).to_bytes(4, "little")  # type and count of a tag
BAD = {
    **{
        f"the start of a {name}": (data[: int(len(data) * 0.6)], "truncated|compressed by")
        for name, (data, _) in CASES.items()
        if "NPY" not in name
    },
    "half of an NPY": (CASES["NPY"][0][:200], "length is not that of its array"),
    "an NPY of objects": (npy(np.array([{}, None])), "not numbers of shape"),
    "an NPY of channels first": (npy(DEEP.transpose(2, 0, 1)), "put the channels last"),
    "an NPY of truth values": (npy(GREY > 9), "not numbers"),
    "NaN": (npy(np.full((2, 3), np.nan)), "6 of its 6 values are NaN or infinite"),
    "infinity": (tiff(np.array([[1, np.inf], [2, 3]], dtype=np.float32)), "1 of its 4 values are NaN"),
    "a GIF": (pillow(GREY, "GIF"), "not a JPEG, PNG, TIFF"),
    "two pages": (tiff(np.stack([DEEP[..., 0]] * 2), photometric="minisblack"), "holds 2 images"),
    "JPEG in a TIFF": (pillow(GREY, "TIFF", compression="jpeg"), "hides damage"),
    "an interlaced 16-bit colour PNG": (colour_png(DEEP[:1, :1], interlaced=True), "without interlacing"),
    "a wrong checksum at the end of a 16-bit colour PNG": (
        CASES["16-bit colour PNG"][0].replace(chunk(b"IEND", b""), b"\0\0\0\1tEXtx____" + chunk(b"IEND", b"")),
        "checksum",
    ),
    "deep colour LZW": (
        tiff(DEEP, compression="zlib", **RGB).replace(b"\x03\x01" + SHORT + b"\x08", b"\x03\x01" + SHORT + b"\x05"),
        "compressed by LZW: save it without compression",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_as_one_picture_is_refused_in_one_line(
    case: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data, words = BAD[case]
    with quiet_decoders(), pytest.raises(DecodeError, match=words) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_claim_of_too_many_pixels_is_refused_before_they_are_made() -> None:
    with pytest.raises(DecodeError, match=f"says 8193 x 8192 pixels; at most {MAX_PIXELS} are read"):
        decode(
            b"\x93NUMPY\x01\x00\x76\x00"
            + b"{'descr': '|u1', 'fortran_order': False, 'shape': (8193, 8192), }".ljust(117)
            + b"\n"
        )


def test_deep_files_are_known_by_their_head(tmp_path: Path) -> None:
    for name, (data, expected) in CASES.items():
        path = tmp_path / "image"
        path.write_bytes(data)
        assert is_deep_file(path) == (expected.dtype != np.uint8), name
    path.write_bytes(b"text")
    with pytest.raises(ImageError, match="not a JPEG"):
        is_deep_file(path)


def test_remarks_on_metadata_stay_off_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    palette = Image.fromarray(GREY).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings(record=True) as said, quiet_decoders(), caplog.at_level(logging.WARNING):
        decode(buffer.getvalue())
    assert not said
    assert not caplog.records


def test_a_damaged_lzw_tiff_is_an_error_without_words_of_the_decoder(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(pillow(GREY, "TIFF", compression="tiff_lzw"))
    data[12:40] = b"\xff" * 28
    with pytest.raises(DecodeError, match="a truncated or corrupt TIFF"):
        decode(bytes(data))
    assert capfd.readouterr() == ("", "")


def test_an_image_is_flat_only_if_no_pixel_differs() -> None:
    values = np.full((41, 23, 3), 7, dtype=np.uint8)
    assert decode(npy(values)).facts.flat
    values[31, 3, 1] = 8  # not among the few that are looked at first
    assert not decode(npy(values)).facts.flat
