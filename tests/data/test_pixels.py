"""Caches of decoded pixels: every kind gives what the files give, and says what is wrong with them."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_run import write_tree
from trireid.data import cache_file
from trireid.data import pixels as module
from trireid.data.images import ImageError
from trireid.data.orientations import expand_orientations
from trireid.data.pixels import CachedPixels, FilePixels, cache_size, choose_cache, open_pixels
from trireid.data.readers import scan
from trireid.data.records import ImageSource, Record
from trireid.errors import ConfigError, RunError

SIZE = (20, 20)
CPU = torch.device("cpu")


@pytest.fixture
def records(tmp_path: Path) -> tuple[Record, ...]:
    return scan("rgbnt201", write_tree(tmp_path / "tree", identities=2, size=(16, 16))).train


def open_cache(records: tuple[Record, ...], cache: str, **options: object) -> FilePixels | CachedPixels:
    return open_pixels(records, image_size=SIZE, interpolation="bicubic", cache=cache, device=CPU, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cache", "workers"), [("memory", 0), ("memory", 3), ("disk", 2), ("auto", 1)])
def test_every_cache_gives_what_the_files_give(
    records: tuple[Record, ...], tmp_path: Path, cache: str, workers: int
) -> None:
    records = expand_orientations(records)
    cached = open_cache(records, cache, workers=workers, folder=tmp_path / "cache")
    assert isinstance(cached, CachedPixels)
    order = [5, 0, len(records) - 1]
    for one, other in zip(cached.read(order), open_cache(records, "none").read(order), strict=True):
        assert torch.equal(one, other)


def test_files_in_several_orientations_are_decoded_once(
    records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    original = module.decode_sources
    monkeypatch.setattr(
        module, "decode_sources", lambda record, *rest: calls.append(record.name) or original(record, *rest)
    )
    seen: list[tuple[int, int]] = []
    open_cache(expand_orientations(records), "memory", report=lambda *done: seen.append(done))
    assert len(calls) == len(records)
    assert seen[-1] == (8 * len(records), 8 * len(records))


def test_a_cache_file_is_shared_until_an_image_changes(
    records: tuple[Record, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "cache", []
    original = module.decode_sources
    monkeypatch.setattr(
        module, "decode_sources", lambda record, *rest: calls.append(record.name) or original(record, *rest)
    )
    first = open_cache(records, "disk", folder=folder)
    again = open_cache(records, "disk", folder=folder)
    assert len(calls) == len(records)
    assert torch.equal(first.read([0])[0], again.read([0])[0])
    (file,) = folder.iterdir()
    assert file.stat().st_size == cache_size(len(records), SIZE) + 4 * len(records)  # a checksum each
    source = records[0].images[0]
    assert source is not None
    os.utime(source.path, ns=(1, 1))
    open_cache(records, "disk", folder=folder)
    assert len(calls) == 2 * len(records)


def _damage(kind: str, content: bytes) -> bytes:
    middle = len(content) // 2
    return {
        "zeros": bytes(len(content)),
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "a checksum": content[:-1] + bytes([content[-1] ^ 1]),
        "short": content[:-1],
        "empty": b"",
    }[kind]


@pytest.mark.parametrize("kind", ["zeros", "one bit", "a checksum", "short", "empty"])
def test_a_damaged_cache_file_is_filled_anew(
    records: tuple[Record, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    folder = tmp_path / "cache"
    expected = open_cache(records, "none").read([*range(len(records))])[0]
    open_cache(records, "disk", folder=folder)
    (file,) = folder.iterdir()
    good = file.read_bytes()
    file.write_bytes(_damage(kind, good))
    with caplog.at_level(logging.INFO):
        again = open_cache(records, "disk", folder=folder)
    assert torch.equal(again.read([*range(len(records))])[0], expected)
    assert "decoded once" in caplog.text
    if kind in ("zeros", "one bit", "a checksum"):
        damaged = len(records) if kind == "zeros" else 1
        assert f"{file} is damaged ({damaged} of {len(records)} triplets): all are decoded again" in caplog.text
    assert file.read_bytes() == good


def test_the_same_path_size_and_date_with_other_pixels_is_decoded_anew(
    records: tuple[Record, ...], tmp_path: Path
) -> None:
    path = tmp_path / "image.npy"
    states = []
    for value in (10, 200):
        np.save(path, np.full((4, 4), value, dtype=np.uint8))
        os.utime(path, ns=(10**18, 10**18))
        states.append((path.stat().st_size, path.stat().st_mtime_ns))
        cached = open_cache([Record("one", (ImageSource(path), None, None), "1")], "disk", folder=tmp_path / "cache")
        assert int(cached.read([0])[0][0, 0].float().mean()) == value
        time.sleep(0.02)  # more than the ticks of the file system's clock
    assert states[0] == states[1]


def test_another_range_is_another_cache_file(tmp_path: Path) -> None:
    path = tmp_path / "image.npy"
    np.save(path, np.full((4, 4), 150, dtype=np.uint16))
    record = Record("one", (None, None, ImageSource(path)), "1")
    for low_high, expected in (((100, 200), 128), ((100, 150), 255), ((100, 200), 128)):
        for cache in ("disk", "none", "memory"):
            read = open_cache([record], cache, folder=tmp_path / "cache", ranges=(None, None, low_high)).read([0])[0]
            assert int(read[0, 2].float().mean()) == expected
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_leftovers_of_killed_fills_are_removed_and_those_in_use_are_not(
    records: tuple[Record, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    leftover, other = folder / f".{'0' * 32}.uint8.12345.tmp", folder / ".other.tmp"
    leftover.write_bytes(bytes(1000))
    other.write_bytes(b"")
    with cache_file._filling(folder):  # as another process that fills
        leftover.write_bytes(bytes(1000))
        open_cache(records, "disk", folder=folder)
        assert leftover.exists()
    (file,) = folder.glob("*.uint8")
    file.unlink()
    open_cache(records, "disk", folder=folder)
    assert sorted(folder.iterdir()) == sorted([file, other])


def test_the_log_counts_the_images_that_were_turned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 8)).save(tmp_path / "turned.png", exif=exif)
    Image.new("RGB", (8, 4)).save(tmp_path / "plain.png")
    sources = ImageSource(tmp_path / "turned.png"), ImageSource(tmp_path / "plain.png")
    with caplog.at_level(logging.INFO):
        open_cache([Record("one", (*sources, sources[1]), "1")], "memory")
    assert "1 of 2 image files rotated upright by their EXIF orientation" in caplog.text


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_damaged_image_leaves_no_cache_file(records: tuple[Record, ...], tmp_path: Path, cache: str) -> None:
    source = records[3].images[1]
    assert source is not None
    source.path.write_bytes(source.path.read_bytes()[:40])
    with pytest.raises(ImageError, match=source.path.name):
        open_cache(records, cache, workers=2, folder=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(
    records: tuple[Record, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_file.os, "posix_fallocate", full)
    monkeypatch.setattr(module, "_decode_all", lambda *_, **__: pytest.fail("written to a file without space"))
    with pytest.raises(RunError, match=r"No space left on device.*data\.cache_folder"):
        open_cache(records, "disk", folder=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_the_log_says_where_the_pixels_come_from(
    records: tuple[Record, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for cache in ("none", "disk", "disk"):
            open_cache(records, cache, folder=tmp_path / "cache")
    none, first, second = (record.getMessage() for record in caplog.records)
    assert none == f"{len(records)} triplets, decoded from their files at each access (no cache)"
    assert first.startswith(f"{len(records)} triplets decoded once, ")
    assert second.startswith(f"{len(records)} triplets decoded by an earlier run, ")
    assert second.endswith(f"MB of pixels kept in a file of {tmp_path / 'cache'}")


def test_auto_takes_memory_then_disk_then_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(size: int, num_processes: int = 1) -> str:
        return choose_cache("auto", size=size, device=CPU, folder=tmp_path / "a" / "b", num_processes=num_processes)

    monkeypatch.setattr(module, "free_memory", lambda: 1000)
    assert chosen(499) == "memory"
    assert chosen(500) == "disk"
    assert chosen(300, num_processes=2) == "disk"
    assert chosen(2**62) == "none"
    assert choose_cache("none", size=1, device=CPU, folder=tmp_path) == "none"


def test_device_needs_cuda(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data.cache=device needs a CUDA device: use auto, memory, disk or none"):
        choose_cache("device", size=1, device=CPU, folder=tmp_path)


def test_memory_that_is_not_there_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: 2 * 10**9)
    assert choose_cache("memory", size=2 * 10**9, device=CPU, folder=tmp_path) == "memory"
    with pytest.raises(ConfigError, match=r"data.cache=memory needs 1.50 GB .* 1.00 GB are free: use auto, disk or"):
        choose_cache("memory", size=15 * 10**8, device=CPU, folder=tmp_path, num_processes=2)


def test_free_memory_is_at_most_what_the_host_has() -> None:
    assert 0 < module.free_memory() <= module.psutil.virtual_memory().total


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_cache_on_the_device_gives_the_same(records: tuple[Record, ...]) -> None:
    device = torch.device("cuda")
    cached = open_pixels(records, image_size=SIZE, interpolation="bicubic", cache="auto", device=device)
    pixels, present = cached.read([3, 1])
    assert pixels.is_cuda
    expected, shown = open_cache(records, "none").read([3, 1])
    assert torch.equal(pixels.cpu(), expected)
    assert torch.equal(present, shown)
