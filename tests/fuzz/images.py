"""Image files: odd ones made by hand, and good ones with bytes changed, cut or overwritten; decoded and checked."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fuzz.mutations import damaged
from fuzz.package import command, tiny_tree
from fuzz.runner import Case, Kind
from fuzz.sandbox import WrongResult
from trireid.data.formats import quiet_decoders
from trireid.data.images import decode_image

HEIGHT, WIDTH = 32, 16
PNG_START, BOMB = b"\x89PNG\r\n\x1a\n", 100_000_000


def encoded(mode: str, format: str, *, size: tuple[int, int] = (HEIGHT, WIDTH), **options: object) -> bytes:
    """Random pixels of a mode of Pillow, as a file of a format."""
    draw = np.random.default_rng(0)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(draw.integers(0, 65535, size).astype(kind))
    else:
        image = Image.fromarray(draw.integers(0, 256, (*size, 4), dtype=np.uint8), "RGBA").convert(mode)
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def smooth_jpeg() -> bytes:
    """A JPEG of 256 x 128 whose scan holds nearly all of its bytes, as of a camera."""
    y, x = np.mgrid[:256, :128]
    pixels = np.stack([y // 2 + 40, x + 60, (x + y) // 3], -1) + np.random.default_rng(0).integers(
        -25, 25, (256, 128, 3)
    )
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A part of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, depth: int, colour: int, pixels: bytes, *, interlace: int = 0, extra: bytes = b""
) -> bytes:
    """A PNG whose header says what it likes; `pixels` are compressed."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return PNG_START + chunk(b"IHDR", head) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def claiming(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header claims another size."""
    changed, place = bytearray(jpeg), 2
    while changed[place + 1] not in (0xC0, 0xC2):
        place += 2 + struct.unpack_from(">H", changed, place + 2)[0]
    struct.pack_into(">HH", changed, place + 5, height, width)
    return bytes(changed)


def good_files() -> dict[str, bytes]:
    """Files to be changed, each small."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "jpeg": encoded("RGB", "JPEG"), "grey": encoded("L", "JPEG"), "cmyk": encoded("CMYK", "JPEG"),
        "progressive": encoded("RGB", "JPEG", progressive=True), "subsampled": encoded("RGB", "JPEG", subsampling=2),
        "turned": encoded("RGB", "JPEG", exif=exif), "png": encoded("RGB", "PNG"), "png_rgba": encoded("RGBA", "PNG"),
        "png_la": encoded("LA", "PNG"), "png_l": encoded("L", "PNG"), "png_p": encoded("P", "PNG"),
        "png_1": encoded("1", "PNG"), "png_16": encoded("I;16", "PNG"), "one_pixel": encoded("RGB", "JPEG", size=(1,
        1)), "bmp": encoded("RGB", "BMP"), "tiff": encoded("RGB", "TIFF"), "tiff_16": encoded("I;16", "TIFF"),
        "tiff_float": encoded("F", "TIFF"), "tiff_deflate": encoded("RGB", "TIFF", compression="tiff_deflate"),
        "webp": encoded("RGB", "WEBP"), "gif": encoded("P", "GIF"),
    }  # fmt: skip
    for name, array in {
        "npy": np.zeros((HEIGHT, WIDTH), np.uint8), "npy_16": np.full((HEIGHT, WIDTH), 30_000, np.uint16),
        "npy_float": np.full((HEIGHT, WIDTH), np.nan, np.float32), "npy_object": np.array([None, "x"], dtype=object),
        "npy_big": np.full((HEIGHT, WIDTH, 3), 3, ">u2"), "npy_5d": np.zeros((1, 1, 1, 2, 2)),
    }.items():  # fmt: skip
        stream = io.BytesIO()
        np.save(stream, array)
        files[name] = stream.getvalue()
    return files


def made_files(good: dict[str, bytes]) -> dict[str, Callable[[], bytes]]:
    """Files that no camera writes: bombs, wrong headers, mixtures; each made when it is needed."""
    rows = zlib.compress(b"\0" * (3 * WIDTH + 1) * HEIGHT)
    frames = [Image.new("RGB", (WIDTH, HEIGHT), (9 * i, 0, 0)) for i in range(3)]

    def bomb(*head: int) -> Callable[[], bytes]:
        return lambda: png(*head, zlib.compress(b"\0" * BOMB, 9))  # type: ignore[arg-type]

    def text_bomb(name: bytes) -> Callable[[], bytes]:
        return lambda: png(WIDTH, HEIGHT, 8, 2, rows, extra=chunk(name, b"icc\0\0" + zlib.compress(b"A" * BOMB, 9)))

    def animation(format: str) -> bytes:
        stream = io.BytesIO()
        frames[0].save(stream, format, save_all=True, append_images=frames[1:])
        return stream.getvalue()

    made: dict[str, Callable[[], bytes]] = {
        f"{name} of {w} x {h}": lambda name=name, w=w, h=h: claiming(good[name], w, h)  # type: ignore[misc]
        for name in ("jpeg", "progressive", "grey")
        for w, h in ((4000, 4000), (20_000, 20_000), (65_500, 65_500), (65_535, 1), (1, 65_535), (0, 0), (16, 0))
    }
    for width, height, depth, colour in (
        (10_000, 10_000, 8, 2), (13_000, 13_000, 8, 0), (60_000, 60_000, 8, 2), (2**31 - 1, 2**31 - 1, 8, 2),
        (13_000, 13_000, 1, 0), (13_000, 13_000, 16, 0), (0, 0, 8, 2), (WIDTH, HEIGHT, 7, 2), (WIDTH, HEIGHT, 8, 5),
        (WIDTH, HEIGHT, 8, 3), (WIDTH, HEIGHT, 16, 6),
    ):  # fmt: skip
        made[f"png {width} x {height} of {depth} bits, colour {colour}"] = bomb(width, height, depth, colour)
    plain: dict[str, bytes] = {
        "empty": b"", "start": b"\xff\xd8", "start and end": b"\xff\xd8\xff\xd9", "png start": PNG_START,
        "png start and end": PNG_START + chunk(b"IEND", b""), "svg": b"<svg/>", "zeros": b"\0" * 1_000_000,
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200, "jpeg and more": good["jpeg"] + b"x" * 1000,
        "png and more": good["png"] + b"x" * 1000, "jpeg in png": PNG_START + good["jpeg"], "two": good["jpeg"] * 2,
        "short": png(WIDTH, HEIGHT, 8, 2, zlib.compress(b"\0" * 10)), "garbage": png(WIDTH, HEIGHT, 8, 2, b"garbage"),
        "filter": png(WIDTH, HEIGHT, 8, 2, zlib.compress(b"\xff" * (3 * WIDTH + 1) * HEIGHT)),
        "interlaced": png(8, 8, 8, 2, zlib.compress((b"\0" + b"x" * 24) * 40), interlace=1),
        "npy of code": b"\x93NUMPY\x01\x00\x10\x00{'descr': '|O'}\n",
        "npy header": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535,
        "npy claims": b"\x93NUMPY\x01\x00\x50\x00"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999, 99999, 3)}".ljust(79)
        + b"\n",
    }  # fmt: skip
    made |= {name: lambda data=data: data for name, data in plain.items()}  # type: ignore[misc]
    made |= {f"text bomb {name!r}": text_bomb(name) for name in (b"zTXt", b"iCCP")}
    made |= {f"animation {name}": lambda name=name: animation(name) for name in ("PNG", "GIF", "WEBP", "TIFF")}  # type: ignore[misc]
    made |= {
        f"{mode} as {name}": lambda mode=mode, name=name: encoded(mode, name)  # type: ignore[misc]
        for mode, name in (
            ("RGB", "ICO"),
            ("RGB", "PPM"),
            ("RGB", "TGA"),
            ("CMYK", "TIFF"),
            ("LAB", "TIFF"),
            ("I", "TIFF"),
        )
    }
    return made


GOOD = good_files()
MADE = made_files(GOOD)


def prepare(folder: Path) -> None:
    """A tree one of whose images is to be damaged, and a JPEG as of a camera."""
    tiny_tree(folder / "data")
    (folder / "camera.jpg").write_bytes(smooth_jpeg())


def _decode(path: Path) -> torch.Tensor:
    with quiet_decoders():
        pixels = torch.as_tensor(decode_image(path))
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3) or min(pixels.shape) < 1:
        raise WrongResult(f"pixels of shape {tuple(pixels.shape)}")
    if pixels.is_floating_point() and not bool(pixels.isfinite().all()):
        raise WrongResult("pixels that are not finite")
    return pixels


def changed_bytes(case: Case) -> None:
    """A good file with a few bytes changed."""
    name = case.random.choice(sorted(GOOD))
    case.describe(name)
    path = case.folder / case.random.choice(("m.jpg", "m.png", "m.tif", "m.npy"))
    path.write_bytes(damaged(case.random, GOOD[name], start=2))
    _decode(path)


def made(case: Case) -> None:
    """A file made by hand."""
    name = case.random.choice(sorted(MADE))
    case.describe(name)
    path = case.folder / "m.jpg"
    path.write_bytes(MADE[name]())
    _decode(path)


def overwritten_scan(case: Case) -> None:
    """A JPEG whose end is zeros, ones or cut: its pixels as they were, or an error."""
    good = (case.base / "camera.jpg").read_bytes()
    start = case.random.randrange(1000, len(good) - 200)
    filling = case.random.choice((b"\x00", b"\xff", b""))
    case.describe(f"{filling!r} from byte {start} of {len(good)}")
    path = case.folder / "m.jpg"
    path.write_bytes(good[:start] + filling * (len(good) - start - 2) + case.random.choice((b"\xff\xd9", b"")))
    if not torch.equal(_decode(path), _decode(case.base / "camera.jpg")):
        raise WrongResult("a damaged JPEG gives other pixels without a word")


def in_a_tree(case: Case) -> None:
    """A damaged or made file as an image of a data set."""
    root = Path(shutil.copytree(case.base / "data", case.folder / "data"))
    target = case.random.choice(sorted(root.rglob("*.jpg")))
    if case.random.random() < 0.6:
        name = case.random.choice(sorted(GOOD))
        target.write_bytes(damaged(case.random, GOOD[name], start=2))
    else:
        name = case.random.choice(sorted(MADE))
        target.write_bytes(MADE[name]())
    case.describe(name)
    skip = ["--skip-bad"] if case.random.random() < 0.3 else []
    command("check-data", "--format", "rgbnt201", "--root", root, *skip)


KIND = Kind(
    "images",
    2200,
    prepare,
    {changed_bytes: 70, made: 5, overwritten_scan: 13, in_a_tree: 12},
    quick=frozenset({changed_bytes, made, overwritten_scan}),
)
