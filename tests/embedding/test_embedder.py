"""The embedder gives the features of `trireid test`, whatever its images come as."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import trireid
from tiny_run import untrained_run, write_tree
from trireid.data.readers import scan
from trireid.data.transforms import Normalise
from trireid.embedding import ahead, fast
from trireid.embedding.items import Item
from trireid.embedding.streaming import EmbeddingCounts
from trireid.errors import InputError
from trireid.evaluation.feature_files import load_features
from trireid.models.speed_choice import RECORD_ITEMS
from trireid.names import MODALITIES
from trireid.types import Batch

CAMERAS = ("model.sie_coefficient=3", "evaluate.batch_size=5", "model.head=hdm")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedder")
    return untrained_run(write_tree(folder / "tree", identities=3), folder / "run", *CAMERAS)


@pytest.fixture(scope="module")
def records(run):
    return scan("rgbnt201", run.parent / "tree").gallery


def item_of(record):
    images = {name: source.path for name, source in zip(MODALITIES, record.images, strict=True)}
    return Item(images, key=record.name, identity=record.identity, camera=record.camera)


@pytest.fixture(scope="module")
def embedder(run):
    return trireid.Embedder(run, device="cpu")


def test_features_are_those_of_the_test_to_the_last_digit(run, records, embedder):
    tested = load_features(run).query.features
    found = embedder.embed(map(item_of, records))
    assert len(found) == 12
    for feature in ("global", "head", "joint"):
        own = (
            found
            if feature == "joint"
            else trireid.Embedder(run, device="cpu", feature=feature).embed(map(item_of, records))
        )
        assert np.array_equal(own.vectors, tested.features[feature].numpy())
        assert own.model.blocks == tested.blocks[feature]
    assert found.items[0].identity == records[0].identity
    assert found.items[0].images["nir"] == str(records[0].images[1].path)


def test_arrays_pictures_and_tensors_are_as_good_as_files(records, embedder):
    item = item_of(records[0])
    arrays = {name: np.array(Image.open(path)) for name, path in item.images.items()}
    pictures = {name: Image.fromarray(array) for name, array in arrays.items()}
    tensors = {name: torch.from_numpy(array).permute(2, 0, 1) for name, array in arrays.items()}
    clear = {name: np.dstack([array, array[..., 0]]) for name, array in arrays.items()}  # transparency is not used
    given = (item.images, arrays, pictures, tensors, clear)
    files, *others = (embedder.embed([Item(images, camera=item.camera)]) for images in given)
    for other in others:
        assert np.array_equal(other.vectors, files.vectors)
        assert other.items[0].images == {}
    assert files.keys == ("0",)


def test_boxes_cut_the_object_out_of_the_frame(records, embedder, caplog):
    array = np.array(Image.open(records[0].images[0].path))
    frame = np.zeros((50, 40, 3), np.uint8)
    frame[10:42, 20:36] = array
    whole = embedder.embed([{"rgb": array}])
    for box in ((20, 10, 36, 42), {"rgb": (20, 10, 36, 42)}, (20.4, 10.9, 35.1, 41.5)):
        assert np.array_equal(embedder.embed([Item({"rgb": frame}, box=box)]).vectors, whole.vectors)
    assert not whole.present[0, 1:].any()
    embedder.embed([Item({"rgb": frame}, box=(20, 10, 90, 42))])
    assert "1 boxes reach beyond" in caplog.text
    with pytest.raises(InputError, match=r"item 'x': the box \(40, 0, 50, 9\) lies outside of the rgb image"):
        embedder.embed([Item({"rgb": frame}, box=(40, 0, 50, 9), key="x")])


def test_images_of_another_depth_than_the_run_are_reported(run, caplog):
    checkpoint = trireid.load_checkpoint(run)
    config = trireid.config.load.override_config(checkpoint.config, ["data.range.tir=[1000,3000]"])
    deep = trireid.Embedder(replace(checkpoint, config=config), device="cpu")
    values = np.linspace(900, 3100, 32 * 16).reshape(32, 16)
    pixels = ((values - 1000) / 2000).clip(0, 1) * 255
    given = [
        {"tir": values.astype(np.uint16)},
        {"tir": values.astype(">f4").round()},
        {"tir": pixels.round().astype(np.uint8)},
    ]
    first, second, third = deep.embed(given).vectors
    assert np.array_equal(first, second) or np.abs(first - second).max() < 0.05
    assert np.abs(first - third).max() < 0.05
    assert "1 tir images have 8 bits" in caplog.text


def test_bad_images_are_an_error_that_names_the_item_or_are_left_out(tmp_path, records, embedder, caplog):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no")
    good = item_of(records[0])
    deep = np.zeros((4, 4), np.uint16)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole, "png")
    truncated = Image.open(io.BytesIO(whole.getvalue()[:2000]))
    for images, words in (
        ({"rgb": tmp_path / "bad.jpg"}, "bad.jpg: a truncated"),
        ({"rgb": tmp_path / "none.jpg"}, "No such file"),
        ({"rgb": "a\0b"}, "cannot be read"),
        ({}, "no image"),
        ({"tir": deep + 999}, "ranges={'tir': .LOW, HIGH.} of trireid.Embedder"),
        ({"tir": deep.astype(np.int64) + 255}, "int64 numbers from 255 to 255: convert pixels of 8 bits to uint8"),
        ({"rgb": truncated}, "the rgb image is a PIL image that cannot be decoded"),
        ({"rgb": np.zeros((4, 4, 2), np.uint8)}, "shape"),
        ({"rgb": 7}, "is a int"),
        ({"rgb": np.full((4, 4), np.nan)}, "NaN"),
    ):
        with pytest.raises(InputError, match=f"item 'k': .*{words}") as caught:
            embedder.embed([good, Item(images, key="k")])
        assert not {"\n", "triplet"} & set(str(caught.value).split(" "))
        caplog.clear()
        assert embedder.embed([Item(images, key="k"), good], skip_bad=True).keys == (good.key,)
        assert "left out: item 'k'" in caplog.text
    for items, words in (
        ([good, good], "twice"),
        ("ab", "single str"),
        ([1], "item 0 is a int"),
        (good, "single Item"),
    ):
        with pytest.raises(InputError, match=words):
            embedder.embed(items)
    assert len(embedder.embed([])) == 0


def test_strange_cameras_get_the_mean_and_are_reported(records, embedder, caplog):
    item = item_of(records[0])
    known, strange, none = (
        embedder.embed([Item(item.images, camera=camera)]).vectors for camera in (item.camera, "elsewhere", None)
    )
    assert np.array_equal(strange, none)
    assert not np.array_equal(known, none)
    assert "(elsewhere)" in caplog.text
    caplog.set_level("INFO", logger="trireid")
    embedder.embed([Item(item.images, camera=item.camera)])
    assert f"those of the same name that the model was trained with ({item.camera})" in caplog.text


def test_the_identity_of_a_model_follows_what_its_features_depend_on(run, embedder):
    checkpoint = trireid.load_checkpoint(run)

    def fingerprint(config=checkpoint.config, **tensors):
        changed = type(checkpoint)(
            checkpoint.path, {**checkpoint.model_state, **tensors}, config, checkpoint.label_map, 0
        )
        return trireid.embedding.identity.fingerprint(changed)

    own = embedder.model.fingerprint
    assert own == fingerprint()
    config, state = checkpoint.config, checkpoint.model_state
    weight = "backbone.vit.patch_embed.proj.weight"
    assert fingerprint(**{weight: state[weight].double()}) == own
    assert fingerprint(**{weight: state[weight] + 1e-3}) != own
    classifier = next(name for name in state if name.startswith("classifiers."))
    assert fingerprint(**{classifier: state[classifier] + 1}) == own
    same = trireid.config.load.override_config(
        config, ["train.epochs=9", "data.workers=7", "model.backbone.pretrained=timm"]
    )
    assert fingerprint(same) == own
    for change in (
        "data.mean=[0.4,0.5,0.5]",
        "data.range.tir=[0,9]",
        "model.sie_coefficient=2",
        "data.modalities=[rgb]",
    ):
        assert fingerprint(trireid.config.load.override_config(config, [change])) != own, change


def test_arguments_that_cannot_be_are_refused(run):
    for arguments, words in (
        ({"feature": "rgb"}, "choose global, head, joint"),
        ({"device": "cuda:99"}, "CUDA device"),
        ({"batch_size": 0}, "at least 1"),
        ({"precision": "int8"}, "int8"),
        ({"ranges": {"red": (0, 1)}}, "the modalities are rgb, nir and tir"),
        ({"ranges": {"tir": (1, 1)}}, "the range of tir is .1, 1.: give .LOW, HIGH."),
    ):
        with pytest.raises(trireid.TrireidError, match=words):
            trireid.Embedder(run, **arguments)


def test_processes_decode_as_threads_do(tmp_path, records, embedder):
    (tmp_path / "bad.jpg").touch()
    items = [*map(item_of, records), Item({"rgb": tmp_path / "bad.jpg"})]
    units = list(ahead.in_parts(enumerate(items), 4))
    one, other = (
        list(ahead._batches(by(iter(units), embedder._decoder.decode_all, workers=2, ahead=2), 8, pin=False))
        for by in (ahead.by_threads, ahead.by_copies)
    )
    assert [batch.numbers for batch in one] == [batch.numbers for batch in other] == [list(range(8)), [8, 9, 10, 11]]
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first.pixels, second.pixels)
        assert first.bad == second.bad
    assert list(ahead._in_thread(iter(range(7)))) == list(range(7))


def test_items_are_taken_only_as_far_as_they_are_needed(records, embedder):
    taken = []
    endless = (taken.append(number) or item_of(records[0]) for number in iter(int, 1))
    stream = embedder.stream(endless, counts=EmbeddingCounts())
    for number in range(1, 4):
        next(stream)
        assert len(taken) <= 5 * number + 5 * ahead.AHEAD + ahead.UNIT * (2 * ahead.num_cores() + 2)
    stream.close()


def test_the_fast_path_is_chosen_by_the_number_of_items_and_given_up_with_a_warning(embedder, monkeypatch, caplog):
    caplog.set_level("INFO", "trireid")
    model = embedder._features.model
    calls = []

    class Recording:
        def __init__(self, model, dtype):
            pass

        def __call__(self, pixels, camera):
            calls.append(camera.tolist())
            if len(calls) > 1:
                raise RuntimeError("operation not permitted\nwhen stream is capturing")
            return "output"

    monkeypatch.setattr(fast, "RecordedModel", Recording)
    plain = fast.FastModel(model, Normalise(), dtype=None, fast=None)
    batch = Batch(torch.zeros(2, 3, 3, 32, 16), torch.ones(2, 3, dtype=torch.bool), *[torch.tensor([0, 1])] * 4)
    for number, expected in ((RECORD_ITEMS - 1, None), (RECORD_ITEMS, "output"), (RECORD_ITEMS, None)):
        plain.prepare(number, batch_size=2)
        assert plain(batch) == expected
    assert plain(batch) is None
    assert calls == [[0, 1], [0, 1]]
    assert "speed: a recorded batch without compiled blocks, because 8192 items" in caplog.text
    assert "(operation not permitted): it runs plain" in caplog.text
    never = fast.FastModel(model, Normalise(), dtype=None, fast=False)
    never.prepare(10**9, batch_size=2)
    assert never(batch) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_fast_path_gives_the_features_of_the_plain_one(run, records, caplog):
    items = [*map(item_of, records), Item({"rgb": records[0].images[0].path})]
    plain, quick = (
        trireid.Embedder(run, device="cuda", fast=fast, precision="fp32").embed(items) for fast in (False, True)
    )
    assert "it runs plain" not in caplog.text
    assert np.allclose(plain.vectors, quick.vectors, atol=1e-4)
