"""Tiny data set trees for the tests of the readers."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from torchvision.io import write_jpeg, write_png

MODALITY_FOLDERS = ("RGB", "NI", "TI")
IDENTITY_FOLDERS = ("vis", "ni", "th")


def write_image(path: Path, *, height: int = 8, width: int = 4, value: int | None = None) -> Path:
    """An image of its own for each path, or a flat one of a value; JPEG or PNG by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write = write_png if path.suffix == ".png" else write_jpeg
    generator = torch.Generator().manual_seed(zlib.crc32(str(path).encode()))
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    write(pixels if value is None else torch.full_like(pixels, value), str(path))
    return path


def write_rgbnt201(root: Path, *, train: str = "train_171", suffix: str = ".jpg") -> Path:
    """2 training and 2 test identities, 2 cameras, one triplet each."""
    for split, identities in ((train, ("000001", "000003")), ("test", ("000002", "000004"))):
        for identity in identities:
            for camera in (1, 2):
                for folder in MODALITY_FOLDERS:
                    write_image(root / split / folder / f"{identity}_cam{camera}_0_01{suffix}")
    return root


def write_rgbnt100(root: Path, *, width: int = 768) -> Path:
    for split, identities in (("bounding_box_train", (1, 3)), ("query", (2, 4)), ("bounding_box_test", (2, 4))):
        for identity in identities:
            for camera in (1, 2) if split != "query" else (1,):
                write_image(root / f"rgbir/{split}/{identity:04d}_c{camera:04d}_001.jpg", width=width)
    return root


def write_msvr310(root: Path) -> Path:
    for split, identities in (("bounding_box_train", (1, 3)), ("query3", (2, 4)), ("bounding_box_test", (2, 4))):
        for identity in identities:
            for scene in (2, 13) if split != "query3" else (2,):
                for folder in IDENTITY_FOLDERS:
                    write_image(root / f"{split}/{identity:04d}/{folder}/{identity:04d}_s{scene:03d}_v4_000.jpg")
    return root


def write_wmveid863(root: Path) -> Path:
    """Identity 4 of the test split lacks NIR at camera 2."""
    for split, identities in (("train", (1, 3)), ("query", (2, 4)), ("test", (2, 4))):
        for identity in identities:
            for camera in (1, 2) if split != "query" else (1,):
                for folder in IDENTITY_FOLDERS:
                    if (split, identity, camera, folder) != ("test", 4, 2, "ni"):
                        write_image(root / f"{split}/{identity:04d}/{folder}/v{camera}_n0_s012_0003.jpg")
    return root


def write_csv(folder: Path, rows: list[str], *, header: str = "rgb,nir,tir,id,camera,scene,split") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "set.csv"
    table.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return table


GOOD_ROWS = [
    "a/r0.png,a/n0.png,a/t0.png,x1,c1,,train",
    "a/r1.png,,a/t1.png,x1,c2,,train",
    ",a/n2.png,,x2,,,train",
    "a/r3.png,,,y1,c1,s1,test",
    "a/r4.png,,,y1,c2,s1,test",
]


def write_csv_set(folder: Path) -> Path:
    for name in ("r0", "n0", "t0", "r1", "t1", "n2", "r3", "r4"):
        write_image(folder / f"a/{name}.png")
    return write_csv(folder, GOOD_ROWS)
