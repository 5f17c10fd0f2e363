"""Pixels that are decoded while they are read: those of the files, in the order of need, with one-line errors."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_run import tiny_config, write_tree
from trireid.config.load import override_config
from trireid.data import filling, workers
from trireid.data.filling import Filler
from trireid.data.orientations import expand_orientations
from trireid.data.pixels import FilePixels, open_pixels
from trireid.data.readers import scan
from trireid.data.reading import ImageError
from trireid.data.records import Record
from trireid.errors import DataError
from trireid.train import inputs
from trireid.train.loop import train
from trireid.train.runs import read_epochs

SIZE = (20, 20)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, ...]:
    """16 triplets in two orientations each."""
    index = scan("rgbnt201", write_tree(tmp_path_factory.mktemp("tree"), identities=4, size=(16, 16)))
    return tuple(sorted(expand_orientations(index.train), key=lambda record: record.orientation))[:32]


def open_filling(filler: Filler, records: tuple[Record, ...]) -> Any:
    return open_pixels(
        records, image_size=SIZE, interpolation="bicubic", cache="memory", device=torch.device("cpu"), filler=filler
    )


@pytest.mark.slow
@pytest.mark.parametrize("processes", [False, True])
def test_what_is_read_while_it_is_decoded_is_what_the_files_hold(
    records: tuple[Record, ...], processes: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(filling, "PROCESSES_FROM", 0)
    monkeypatch.setattr(filling, "UNIT", 3)
    monkeypatch.setattr(filling, "MOVED_AT_ONCE", 5)
    caplog.set_level(logging.INFO)
    filler = Filler(workers=2, processes=processes)
    training, test = open_filling(filler, records), open_filling(filler, records[5:9])
    # A device of its own, so that the moving of rows is tested without CUDA.
    training._on_device = torch.zeros_like(training.host)
    filler.start([7, 31, 2])
    files, held = FilePixels(records, SIZE, "bicubic"), weakref.ref(training.host)
    for positions in ([7, 31, 7], [2], [0, 30, 12], list(range(32)), *[[4]] * 8):
        for one, other in zip(training.read(positions), files.read(positions), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(test.read([3, 0])[0], files.read([8, 5])[0])
    assert len(training.host) == 0  # all of it has moved
    filler.close()
    test.read([1])
    assert f"36 triplets decoded by 2 {'processes' if processes else 'threads'}" in caplog.text
    assert not multiprocessing.active_children()
    gc.collect()
    assert held() is None  # nothing else keeps the memory


def test_workers_take_as_many_groups_as_they_decode_in_a_short_time(records: tuple[Record, ...]) -> None:
    filler = Filler(workers=1, processes=False)
    open_filling(filler, records)
    sizes = [filler._unit]
    for seconds in (0.01, 10.0, 0.0):
        filler._group_seconds, filler._num_groups = 0.0, 0
        filler._store(filling._Decoded([(0, 0)], set(), seconds))
        sizes.append(filler._unit)
    assert sizes == [1, 5, 1, filling.UNIT]


def test_what_is_needed_now_is_decoded_before_what_was_ordered(
    records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "UNIT", 1)
    filler, taken = Filler(workers=1, processes=False), []
    pixels = open_filling(filler, records[:16])
    units = Filler._units

    def noted(self: Filler) -> Any:
        for unit in units(self):
            taken.append(unit[0][1])
            if len(taken) == 1:
                with self._changed:  # as `wait_for` does while the first is decoded
                    self._urgent.append((0, 9))
            yield unit

    monkeypatch.setattr(Filler, "_units", noted)
    filler.start([4, 3, 9])
    pixels.read(range(16))
    filler.close()
    assert taken[:2] == [4, 9]
    assert sorted(taken) == list(range(16))


def test_a_filler_that_was_closed_or_not_started_says_so_and_ends(records: tuple[Record, ...]) -> None:
    filler = Filler(workers=1, processes=False)
    pixels = open_filling(filler, records)
    with pytest.raises(RuntimeError, match="before their filler was started"):
        pixels.read([0])
    filler._closed = True  # nothing is decoded
    filler.start()
    with pytest.raises(RuntimeError, match="after their filler was closed"):
        pixels.read([0])
    filler.close()


def test_a_process_that_is_killed_is_one_line_and_leaves_none(
    records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = filling.decode_group

    def kill(shown: list[Record], *given: Any) -> Any:
        if shown[0] == records[9]:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(shown, *given)

    monkeypatch.setattr(filling, "PROCESSES_FROM", 0)
    monkeypatch.setattr(filling, "decode_group", kill)
    filler = Filler(workers=2)
    pixels = open_filling(filler, records[:16])
    filler.start()
    with pytest.raises(DataError, match="a process that reads images was ended from outside"):
        pixels.read(range(16))
    filler.close()
    assert not multiprocessing.active_children()


def test_threads_decode_where_processes_would_need_more_open_files_than_are_allowed(
    records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(filling, "PROCESSES_FROM", 0)
    monkeypatch.setattr(workers.resource, "getrlimit", lambda _kind: (64, 64))
    filler = Filler(workers=12)
    pixels = open_filling(filler, records[:2])
    filler.start()
    assert torch.equal(pixels.read([1])[0], FilePixels(records, SIZE, "bicubic").read([1])[0])
    filler.close()
    assert "open files, and 64 are allowed: threads decode" in caplog.text
    assert not multiprocessing.active_children()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_pixels_move_to_the_device_while_processes_decode(
    records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "PROCESSES_FROM", 0)
    monkeypatch.setattr(filling, "MOVED_AT_ONCE", 5)
    filler, device = Filler(workers=2), torch.device("cuda")
    settings: Any = {"image_size": SIZE, "interpolation": "bicubic", "device": device, "filler": filler}
    pixels: Any = open_pixels(records, cache="device", **settings)
    filler.start([7, 31, 2])
    files = FilePixels(records, SIZE, "bicubic")
    for positions in ([7, 31, 7], [2], list(range(32)), *[[4, 9]] * 8):
        found, present = pixels.read(positions)
        assert found.is_cuda
        assert torch.equal(found.cpu(), files.read(positions)[0])
        assert present.all()
    assert len(pixels.host) == 0
    filler.close()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [False, True])
def test_a_run_with_pixels_decoded_meanwhile_is_the_same_and_an_error_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: bool
) -> None:
    """As for a CUDA device: the same losses as from a filled cache; a damaged image of the test set is one line."""
    root = write_tree(tmp_path / "data")
    plain = tiny_config(root, tmp_path / "plain")
    train(plain, progress=False)
    monkeypatch.setattr(filling, "PROCESSES_FROM", 0)
    filler = Filler(workers=2, processes=processes)
    monkeypatch.setattr(inputs, "filler_for", lambda *_: filler)
    ahead = override_config(plain, [f"output={tmp_path / 'ahead'}"])
    train(ahead, progress=False)
    assert [each["loss"] for each in read_epochs(ahead.output)] == [each["loss"] for each in read_epochs(plain.output)]

    (root / "test" / "NI" / "000102_cam1_0_01.jpg").write_bytes(b"\xff\xd8\xff garbage")
    filler = Filler(workers=2, processes=processes)
    with pytest.raises(ImageError, match=r"NI/000102_cam1_0_01\.jpg") as caught:
        train(override_config(plain, [f"output={tmp_path / 'damaged'}"]), progress=False)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
