"""Caches of decoded pixels: every kind gives what the files give, and says what is wrong with them."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
import torch

from tiny_run import write_tree
from trireid.data import pixels as module
from trireid.data.images import ImageError
from trireid.data.orientations import expand_orientations
from trireid.data.pixels import CachedPixels, FilePixels, cache_size, choose_cache, open_pixels
from trireid.data.readers import scan
from trireid.data.records import Record
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
    monkeypatch.setattr(module, "decode_sources", lambda record: calls.append(record.name) or original(record))
    seen: list[tuple[int, int]] = []
    open_cache(expand_orientations(records), "memory", report=lambda *done: seen.append(done))
    assert len(calls) == len(records)
    assert seen[-1] == (8 * len(records), 8 * len(records))


def test_a_cache_file_is_shared_until_an_image_changes(
    records: tuple[Record, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "cache", []
    original = module.decode_sources
    monkeypatch.setattr(module, "decode_sources", lambda record: calls.append(record.name) or original(record))
    first = open_cache(records, "disk", folder=folder)
    again = open_cache(records, "disk", folder=folder)
    assert len(calls) == len(records)
    assert torch.equal(first.read([0])[0], again.read([0])[0])
    (file,) = folder.iterdir()
    assert file.stat().st_size == cache_size(len(records), SIZE)
    source = records[0].images[0]
    assert source is not None
    os.utime(source.path, ns=(1, 1))
    open_cache(records, "disk", folder=folder)
    assert len(calls) == 2 * len(records)


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

    monkeypatch.setattr(module.os, "posix_fallocate", full)
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
    assert none == f"{len(records)} triplets decoded from their files each time, no cache"
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
