from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torchvision.io import write_png
from trees import write_image

from trireid.data.dataset import TripletDataset, restrict
from trireid.data.images import REPAIR, ImageError
from trireid.data.labels import LabelMap
from trireid.data.loader import evaluation_loader, set_epoch, train_loader
from trireid.data.pixels import FilePixels
from trireid.data.records import ImageSource, Record
from trireid.errors import ConfigError, DataError
from trireid.types import Batch

SIZE = (12, 8)


@pytest.fixture
def records(tmp_path: Path) -> tuple[Record, ...]:
    """4 identities x 4 images; every fifth lacks NIR; one camera is not known."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for number in range(16):
        sources = []
        for modality in ("rgb", "nir", "tir"):
            path = tmp_path / f"{number:02d}_{modality}.png"
            write_png(torch.randint(0, 256, (3, 14, 9), dtype=torch.uint8, generator=generator), str(path))
            sources.append(None if modality == "nir" and number % 5 == 4 else ImageSource(path))
        camera = None if number == 3 else str(1 + number % 2)
        result.append(Record(f"{number:02d}", tuple(sources), f"id{number // 4}", camera))
    return tuple(result)


def from_files(records: tuple[Record, ...]) -> FilePixels:
    return FilePixels(records, SIZE, "bilinear")


def make_set(records: tuple[Record, ...], known: tuple[Record, ...] | None = None) -> TripletDataset:
    label_map = LabelMap.from_records(records if known is None else known)
    return TripletDataset(records, pixels=from_files(records), label_map=label_map)


def make_train(records: tuple[Record, ...], *, workers: int = 0, seed: int = 1, **changes: object) -> object:
    settings: dict[str, object] = {
        "label_map": LabelMap.from_records(records),
        "pixels": from_files(records),
        "batch_size": 4,
        "num_instances": 2,
    }
    return train_loader(records, seed=seed, workers=workers, **settings | changes)  # type: ignore[arg-type]


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(value, getattr(other, name)) for name, value in vars(one).items())


def test_one_item_is_a_batch_of_one(records: tuple[Record, ...]) -> None:
    dataset = make_set(records, known=records[4:])
    item = dataset[4]
    assert item.images.shape == (1, 3, 3, *SIZE)
    assert item.images.dtype == torch.uint8
    assert item.present.tolist() == [[True, False, True]]
    assert not item.images[0, 1].any()
    assert (item.label.tolist(), item.camera.tolist(), item.item.tolist()) == ([0], [0], [4])
    assert dataset[0].label.tolist() == [-1]
    assert dataset[3].camera.tolist() == [-1]
    assert dataset[0].label.dtype == dataset[0].camera.dtype == dataset[0].item.dtype == torch.int64


def test_a_batch_is_its_items_in_order(records: tuple[Record, ...]) -> None:
    dataset = make_set(records)
    batch = dataset.__getitems__([2, (9, 77), 5])
    assert batch.item.tolist() == [2, 9, 5]
    assert batch.seed.tolist() == [2, 77, 5]
    for row, item in enumerate((2, 9, 5)):
        for name in ("images", "present", "label", "camera"):
            assert torch.equal(getattr(batch, name)[row], getattr(dataset[item], name)[0])


def test_withheld_modalities_are_absent_and_not_opened(records: tuple[Record, ...]) -> None:
    for record in records:
        for index in (0, 1):
            source = record.images[index]
            if source is not None:
                source.path.unlink()
    dataset = make_set(restrict(records, ("tir",)))
    assert dataset[0].present.tolist() == [[False, False, True]]
    assert not dataset[0].images[0, :2].any()
    assert not dataset.complete


def test_wrong_modalities(records: tuple[Record, ...]) -> None:
    for modalities in (("rgb", "depth"), ()):
        with pytest.raises(ConfigError, match="choose one or more of rgb, nir, tir"):
            restrict(records, modalities)
    with pytest.raises(DataError, match="3 of 16 triplets have none of the modalities nir, the first is 04"):
        restrict(records, ("nir",))


def test_more_workers_than_open_files_allow_are_refused(
    records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trireid.data.workers.resource.getrlimit", lambda _what: (64, 64))
    with pytest.raises(ConfigError, match=r"data.workers=12 needs about \d+ open files, and 64 are allowed: use fewer"):
        make_train(records, workers=12)
    make_train(records, workers=0)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_processes_get_each_batch_of_a_test_loader_once(records: tuple[Record, ...], number: int) -> None:
    settings = {"pixels": from_files(records), "label_map": LabelMap.from_records(records), "batch_size": 6}
    whole = [batch.item.tolist() for batch in evaluation_loader(records, **settings)]
    parts = [
        [batch.item.tolist() for batch in evaluation_loader(records, share=(process, number), **settings)]
        for process in range(number)
    ]
    assert [parts[place % number][place // number] for place in range(len(whole))] == whole
    assert sum(map(len, parts)) == len(whole)


def test_test_loader_keeps_the_order_and_the_rest(records: tuple[Record, ...]) -> None:
    loader = evaluation_loader(
        records, pixels=from_files(records), label_map=LabelMap.from_records(records), batch_size=6
    )
    assert [batch.item.tolist() for batch in loader] == [[*range(6)], [*range(6, 12)], [*range(12, 16)]]


def test_train_batches_repeat_by_seed_and_epoch(records: tuple[Record, ...]) -> None:
    loader = make_train(records)
    first = list(loader)  # type: ignore[call-overload]
    assert len(first) == len(loader) == 4  # type: ignore[arg-type]
    torch.manual_seed(9)
    assert all(equal(*pair) for pair in zip(first, make_train(records), strict=True))  # type: ignore[call-overload]
    set_epoch(loader, 1)
    second = list(loader)  # type: ignore[call-overload]
    assert not all(equal(*pair) for pair in zip(first, second, strict=True))
    set_epoch(loader, 0)
    assert all(equal(*pair) for pair in zip(first, loader, strict=True))  # type: ignore[call-overload]


def test_global_generator_does_not_move(records: tuple[Record, ...]) -> None:
    state = torch.get_rng_state()
    list(make_train(records))  # type: ignore[call-overload]
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_change_nothing_also_in_the_next_epoch(records: tuple[Record, ...]) -> None:
    alone, helped = make_train(records), make_train(records, workers=2)
    for epoch in (0, 1):
        set_epoch(alone, epoch)
        set_epoch(helped, epoch)
        pairs = list(zip(alone, helped, strict=True))  # type: ignore[call-overload]
        assert len(pairs) == 4
        assert all(equal(*pair) for pair in pairs)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_image_ends_in_one_line(records: tuple[Record, ...], workers: int) -> None:
    source = records[5].images[2]
    assert source is not None
    source.path.write_bytes(source.path.read_bytes()[:-30])
    loader = evaluation_loader(
        records,
        pixels=from_files(records),
        label_map=LabelMap.from_records(records),
        batch_size=4,
        workers=workers,
    )
    message = ""
    try:
        list(loader)
    except ImageError as error:
        message = str(error)
        error.__traceback__ = None  # it holds the loader's iterator in a cycle, whose collection waits for the workers
    assert message == f"{source.path}: a truncated PNG; {REPAIR}"


def test_set_epoch_reaches_through_accelerate(records: tuple[Record, ...]) -> None:
    plain = make_train(records)
    wrapped = Accelerator(cpu=True).prepare(make_train(records))
    for epoch in (7, 7, 2):  # as after a resume, and again
        set_epoch(plain, epoch)
        set_epoch(wrapped, epoch)
        assert all(equal(*pair) for pair in zip(plain, wrapped, strict=True))  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="create it with train_loader"):
        set_epoch(torch.utils.data.DataLoader([1, 2]), 0)  # type: ignore[arg-type]


def test_random_sampler_and_errors(records: tuple[Record, ...]) -> None:
    loader = make_train(records, sampler="random", batch_size=5)
    items = torch.cat([batch.item for batch in loader])  # type: ignore[attr-defined]
    assert len(items) == len(items.unique()) == 15
    with pytest.raises(ConfigError, match="use identity, random or uniform_identity"):
        make_train(records, sampler="sorted")
    with pytest.raises(DataError, match="4 training triplets have an identity that is not in the label map"):
        make_train(records, label_map=LabelMap.from_records(records[4:]))


def test_strip_record_loads_through_the_dataset(tmp_path: Path) -> None:
    path = write_image(tmp_path / "strip.png", width=12, value=255)
    record = Record("s", tuple(ImageSource(path, (start, start + 4)) for start in (0, 4, 8)), "1")
    assert torch.equal(make_set((record,))[0].images, torch.full((1, 3, 3, *SIZE), 255, dtype=torch.uint8))
    narrow = dataclasses.replace(record, images=(record.images[0], None, None))
    with pytest.raises(ImageError, match="must be 4 pixels wide"):
        make_set((narrow,))[0]
