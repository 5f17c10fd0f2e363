"""What is refused in one line, hostile texts, locks, copies, and what an embedding and a threshold decide."""

import dataclasses
import fcntl
import json
import subprocess
import sys

import numpy as np
import pytest

from gallery_cases import calibrated, embed, model_of, random_embeddings
from trireid.errors import DataError, InputError, RunError
from trireid.gallery.filters import Filter
from trireid.gallery.gallery import Gallery
from trireid.gallery.rebuilding import rebuild

HOSTILE = [
    '" or key != "',
    "\\",
    '\\" or 1 == 1 or camera == "',
    "' or '",
    "%",
    "äß漢字🚗",
    "a]) or (true",
    "{x}",
    "null",
]


@pytest.fixture
def gallery(gallery_location):
    with Gallery.create(model=model_of(), **gallery_location) as made:
        yield made


def three(**fields):
    return embed(model_of(), np.arange(1.0, 37.0).reshape(3, 12), np.ones((3, 3)), **fields)


def test_texts_of_all_kinds_are_data_and_what_cannot_be_done_changes_nothing(gallery):
    """In one test, since each gallery takes most of a second."""
    found = embed(
        gallery.model,
        np.random.default_rng(0).standard_normal((len(HOSTILE), 12)),
        np.ones((len(HOSTILE), 3)),
        key=HOSTILE,
        camera=HOSTILE,
        identity=HOSTILE,
    )
    assert gallery.add(found).added == len(HOSTILE)
    for text in HOSTILE:
        for name in ("keys", "cameras", "identities"):
            assert [item.key for item in gallery.list(Filter(**{name: [text]}))] == [text]
        assert gallery.count(Filter(not_cameras=[text])) == len(HOSTILE) - 1
        result = gallery.query(text, exclude="cross_camera", by="identity")[0]
        assert {match.identity for match in result.matches} == set(HOSTILE) - {text}
    assert gallery.remove(Filter(keys=[HOSTILE[0]])) == 1
    assert len(gallery) == len(HOSTILE) - 1
    before = gallery.list()

    other = dataclasses.replace(gallery.model, fingerprint="e" * 64)
    bad = embed(gallery.model, np.ones((1, 12)), np.ones((1, 3)))
    bad.vectors[0, 3] = np.nan  # after it was checked
    zero = three()
    zero.vectors[1, :4] = 0.0
    refused = [
        (lambda: gallery.add(dataclasses.replace(three(), model=other)), "another model"),
        (lambda: gallery.add(bad), "NaN"),
        (lambda: gallery.add(zero), "only zeros"),
        (lambda: gallery.add(three().select([])), "no items"),
        (lambda: gallery.add(three(identity=["a", 7, "b"])), "identity"),
        (lambda: gallery.add(three(camera=["a", "b", "c\nd"])), "control character|printed|line"),
        (lambda: gallery.add(three(scene=["a", "b", ""])), "empty"),
        (lambda: gallery.add(three(key=["a", "b", "k" * 513])), "513 bytes"),
        (lambda: gallery.add(three(time=[0.0, float("nan"), 1.0])), "time"),
        (lambda: gallery.add(three(metadata=[{}, {}, {"x": {1}}])), "JSON"),
        (lambda: gallery.label(["nobody", "null"], "x"), "no item 'nobody'"),
        (lambda: gallery.label("null", ""), "with unlabel$"),
        (lambda: gallery.remove(Filter(keys=["null", "nobody"])), "no item 'nobody'"),
        (lambda: gallery.unlabel([]), "no keys"),
        (lambda: gallery.remove(Filter()), "empty filter"),
        (lambda: gallery.remove(Filter(presence="red")), "presence"),
        (lambda: gallery.count(Filter(after=float("inf"))), "after must be seconds"),
        (lambda: gallery.count(Filter(cameras=[])), "empty list"),
        (lambda: gallery.list(limit=0), "limit"),
        (lambda: gallery.query("null", top=0), "top must be"),
        (lambda: gallery.query("null", by="camera"), "by must be one of item, identity"),
        (lambda: gallery.query("null", fmr=0.01), "needs a calibration"),
        (lambda: gallery.query("null", threshold=3.0), "from 0 to 2"),
        (lambda: gallery.query(None), "embeddings or keys"),
        (lambda: gallery.query("nobody"), "no item 'nobody'"),
    ]
    for attempt, words in refused:
        with pytest.raises(InputError, match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert gallery.list() == before


def test_a_gallery_is_open_once_and_is_free_after_it_is_closed(tmp_path):
    with pytest.raises(RunError, match="there is no gallery in"):
        Gallery.open(tmp_path / "none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(RunError, match="is no gallery"):
        Gallery.create(tmp_path / "full", model_of())
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
    with pytest.raises(InputError, match="a folder or http://host:port"):
        Gallery.open("localhost:19530")
    with pytest.raises(InputError, match="letters, digits"):
        Gallery.create(tmp_path / "g", model_of(), name="a b")
    with Gallery.create(tmp_path / "g", model_of()) as gallery:
        gallery.add(three())
        with pytest.raises(RunError, match="open elsewhere"):
            Gallery.open(tmp_path / "g")
        assert len(gallery) == 3  # the attempt did not disturb it
    for attempt in (gallery.count, lambda: gallery.query("item0000"), lambda: gallery.add(three())):
        with pytest.raises(RunError, match=r"^the gallery \S+ was closed: open it again with Gallery.open$"):
            attempt()
    with (tmp_path / "g" / "milvus.db" / "LOCK").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another process could take it
    with pytest.raises(RunError, match="exists already; open that gallery"):
        Gallery.create(tmp_path / "g", model_of())
    with Gallery.open(tmp_path / "g") as gallery:
        assert [item.key for item in gallery.list()] == ["item0000", "item0001", "item0002"]
    mark = tmp_path / "g" / "gallery.json"
    mark.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(RunError, match="schema version 99"):
        Gallery.open(tmp_path / "g")


def test_a_gallery_needs_neither_torch_nor_milvus_to_be_imported():
    code = "import sys, trireid.gallery.gallery as g; g.Gallery; print({'torch', 'pymilvus'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_a_copy_holds_everything(gallery, gallery_location, tmp_path):
    gallery.add(random_embeddings(np.random.default_rng(0), gallery.model, 150))
    calibration = calibrated(gallery.model)
    gallery.set_calibration(calibration)
    same = gallery.copy(tmp_path / "same")
    assert gallery.copy(tmp_path / "wide", partial=True) != same  # other rows
    for name in ("same", "wide"):
        with Gallery.open(tmp_path / name) as copy:
            assert copy.list(limit=1000) == gallery.list(limit=1000)
            assert copy.info().unrelated == gallery.info().unrelated
            assert copy.calibration.rates[0].first == "rnt"
            for ours, theirs in zip(copy.query("k0007", top=50), gallery.query("k0007", top=50), strict=True):
                assert [match.key for match in ours.matches] == [match.key for match in theirs.matches]
            if name == "same":
                back = {**gallery_location, "name": f"{gallery_location['name']}_back"}
                back["location"] = gallery_location["location"] if "://" in str(back["location"]) else tmp_path / "back"
                assert copy.copy(**back) == same
    with pytest.raises(RunError, match="exists already"):
        gallery.copy(tmp_path / "same")


@pytest.mark.slow
def test_thresholds_say_known_unknown_or_cannot_say(gallery, caplog):
    base = np.random.default_rng(0).standard_normal((1, 12))
    near = np.concatenate([base, base + 0.1, -base])
    gallery.add(embed(gallery.model, near, [[1, 1, 1], [1, 1, 1], [1, 1, 0]], key=["a", "b", "c"]))
    gallery.set_calibration(calibrated(gallery.model))
    query = embed(gallery.model, base, [[1, 1, 1]])
    assert [match.accepted for match in gallery.query(query, fmr=0.01)[0].matches] == [True, True, None]
    assert gallery.query(query, fmr=0.01)[0].known is True
    assert gallery.query(query, fmr=0.01)[0].threshold == pytest.approx(np.sqrt(2 - 2 * 0.8))
    assert [match.false_match_rate for match in gallery.query(query)[0].matches] == [0.01, 0.01, None]
    far = embed(gallery.model, -base, [[1, 1, 1]])
    assert gallery.query(far, fmr=0.01)[0].known is None  # the nearest is of presences that are not calibrated
    assert gallery.query(far, fmr=0.01, where=Filter(presence="rgb,nir,tir"))[0].known is False
    assert gallery.query(far, threshold=0.5, where=Filter(presence="rgb,nir,tir"))[0].known is False
    own = [[match.rate_is_bound for match in gallery.query(each)[0].matches] for each in (query, far)]
    assert own == [[True, True, False], [False, False, False]]  # cosines above the highest threshold, and below it
    # What is not calibrated is open, whatever else is in the call; a rate that no pair allows is an error.
    caplog.clear()
    alone = gallery.query(query, fmr=0.01, where=Filter(presence="rgb,nir"))[0]
    assert (alone.known, alone.threshold, [match.accepted for match in alone.matches]) == (None, None, [None])
    assert "0.01 is not calibrated for rgb+nir+tir against rgb+nir: " in caplog.text
    with pytest.raises(InputError, match="not calibrated for any pair of modalities; allowed are 0.00618 to 1: at lea"):
        gallery.query(query, fmr=0.001)
    with pytest.raises(InputError, match="calibrate the model"):
        gallery.set_calibration(dataclasses.replace(calibrated(gallery.model), fingerprint="e" * 64))
    tir = embed(gallery.model, base, [[0, 0, 1]])
    last = gallery.query(tir, threshold=2.0)[0].matches[-1]  # shares nothing with the query
    assert (last.key, last.similarity, last.compared, last.accepted) == ("c", None, (), False)


class Again:
    """Embeds to the number of its path: another model."""

    model = dataclasses.replace(model_of(), fingerprint="d" * 64)
    modalities = ("rgb",)

    def embed(self, items, *, progress=False):
        items = list(items)
        return dataclasses.replace(
            embed(self.model, np.ones((len(items), 12)), [[1, 0, 0]] * len(items)), items=tuple(items)
        )


class OneBatch(Again):
    """What cannot embed the second batch."""

    calls = 0

    def __init__(self, folder):
        self.folder = folder

    def embed(self, items):
        self.calls += 1
        if self.calls == 2:
            assert not Gallery.exists(self.folder)  # what a kill would leave
            raise DataError("an image of the second batch cannot be read")
        return super().embed(items)


class Unused:
    """What must not embed anything."""

    model, modalities = Again.model, ("rgb", "nir")


@pytest.mark.slow
def test_a_gallery_is_built_again_from_its_images_or_not_begun(gallery, tmp_path, monkeypatch):
    image = tmp_path / "images" / "1.png"
    image.parent.mkdir()
    image.touch()
    given = three(identity=["a", None, "b"], camera="c", box=(1.0, 2.0, 3.0, 4.0))
    images = {"rgb": str(image), "nir": str(image), "tir": str(image)}
    items = tuple(dataclasses.replace(item, images=images) for item in given.items)
    gallery.add(dataclasses.replace(given, items=items))
    with monkeypatch.context() as damaged:
        damaged.setattr("trireid.gallery.rebuilding.BATCH", 2)
        with pytest.raises(DataError, match="the second batch"):
            rebuild(gallery, tmp_path / "again", OneBatch(tmp_path / "again"))
    assert list((tmp_path / "again").iterdir()) == []
    assert rebuild(gallery, tmp_path / "again", Again()) == 3
    with Gallery.open(tmp_path / "again") as again:
        assert again.model.fingerprint == "d" * 64
        assert again.list() == gallery.list()
    image.unlink()
    with pytest.raises(RunError, match=r"1\.png of item 'item0000' is not there"):
        rebuild(gallery, tmp_path / "third", Again())
    gallery.add(embed(gallery.model, np.ones((1, 12)), [[1, 0, 0]], key=["0"]))
    with pytest.raises(InputError, match="names no image"):
        rebuild(gallery, tmp_path / "third", Again())
    image.touch()
    for key, change, words in (
        (
            "0",
            {"images": {"tir": str(image)}},
            "embedded from rgb, nir, tir, and its rgb and nir image was given as pixels",
        ),
        ("0", {"images": images}, None),
        (
            "7",
            {"images": images, "metadata": {"num_items": 2}},
            "^item '7' was made of 2 items and names the images of",
        ),
    ):
        one = embed(gallery.model, np.ones((1, 12)), [[1, 1, 1]], key=[key])
        gallery.add(dataclasses.replace(one, items=(dataclasses.replace(one.items[0], **change),)))
        if words is not None:
            with pytest.raises(InputError, match=words):
                rebuild(gallery, tmp_path / "third", Unused())
    assert not (tmp_path / "third").exists()
