"""Error rates from embeddings: against literal loops, closed forms, and what must be refused."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import reference_calibration as literal
import trireid
from trireid.embedding import calibrating
from trireid.embedding.embeddings import Embeddings, ModelIdentity
from trireid.embedding.items import Item
from trireid.errors import InputError, RunError

BLOCKS = ((0,), (1,), (2,), (0, 1))
ALL = ("rgb", "nir", "tir")


def labelled(num_identities, per_identity, *, presences=((1, 1, 1),), noise=1.0, seed=0, width=4):
    random = np.random.default_rng(seed)
    count = num_identities * per_identity
    centres = random.normal(size=(num_identities, len(BLOCKS) * width))
    vectors = np.repeat(centres, per_identity, axis=0) + noise * random.normal(size=(count, len(BLOCKS) * width))
    present = np.array([presences[number % len(presences)] for number in range(count)], dtype=bool)
    filled = np.array([[any(row[index] for index in block) for block in BLOCKS] for row in present])
    vectors *= np.repeat(filled, width, axis=1)
    items = tuple(
        Item({}, key=f"{number:03}", identity=f"id {number // per_identity}", camera=f"c{random.integers(3)}")
        for number in range(count)
    )
    model = ModelIdentity("a" * 64, "joint", BLOCKS, vectors.shape[1])
    return Embeddings(vectors.astype(np.float32), present, items, model)


def rows_of(embeddings, letters, other):
    """The items with these modalities, and their vectors over the blocks that both presences fill."""
    shared = [
        all(any("rnt"[index] in side for index in block) for side in (letters, other))
        for block in embeddings.model.blocks
    ]
    columns = np.repeat(shared, embeddings.vectors.shape[1] // len(shared))
    return [
        (item, vector[columns].tolist())
        for item, vector, row in zip(embeddings.items, embeddings.vectors, embeddings.present, strict=True)
        if "".join(letter for letter, there in zip("rnt", row, strict=True) if there) == letters
    ]


@pytest.mark.parametrize("exclude", ["none", "camera", "cross_camera"])
def test_rates_are_those_of_literal_loops(exclude):
    embeddings = labelled(10, 5, presences=((1, 1, 1), (0, 1, 1)))
    calibration = trireid.calibrate(embeddings, exclude=exclude, replicates=100)
    assert [(each.first, each.second) for each in calibration.rates] == [("nt", "nt"), ("nt", "rnt"), ("rnt", "rnt")]
    for rates in calibration.rates:
        first, second = rows_of(embeddings, rates.first, rates.second), rows_of(embeddings, rates.second, rates.first)
        pairs = literal.all_pairs(first, None if rates.first == rates.second else second, exclude)
        assert rates.num_same == sum(one == other for _, one, other in pairs)
        assert rates.num_different == len(pairs) - rates.num_same
        assert rates.num_identity_pairs == len({frozenset(each[1:]) for each in pairs if each[1] != each[2]})
        for place in range(0, len(rates.cosine), 2):
            threshold = rates.cosine[place]
            assert rates.false_match.rate[place] == pytest.approx(literal.false_match_rate(pairs, threshold))
            assert rates.false_non_match.rate[place] == pytest.approx(literal.false_non_match_rate(pairs, threshold))
            for found, query, gallery in zip(rates.identification, (first, second), (second, first), strict=False):
                expected = literal.identification_rates(query, gallery, threshold, exclude)
                assert (found.false_positive.rate[place], found.false_negative.rate[place]) == pytest.approx(expected)


def test_a_threshold_is_the_smallest_one_that_keeps_the_rate():
    embeddings = labelled(30, 3)
    calibration = trireid.calibrate(embeddings, replicates=100)
    pairs = literal.all_pairs(rows_of(embeddings, "rnt", "rnt"), None, "camera")
    different = sorted((value for value, one, other in pairs if one != other), reverse=True)
    threshold = calibration.threshold(ALL, [True] * 3, 0.1)
    allowed = int(0.1 * len(different))
    assert different[allowed] < threshold <= different[allowed] + 2e-6 < different[allowed - 1]
    assert calibration.false_match_rate(ALL, ALL, threshold) <= 0.1 < calibration.false_match_rate(ALL, ALL, -0.5)
    assert calibration.false_match_rate(ALL, ALL, 1.0) == pytest.approx(calibration.rates[0].lowest, rel=0.1)
    assert calibration.false_match_rate(ALL, ["rgb"], 0.5) is None
    low, high = calibration.rates[0].expected_interval(0.1, 30)
    curve, place = calibration.rates[0].false_match, calibration.rates[0].place(0.1)
    assert low < curve.low[place] < curve.rate[place] < curve.high[place] < high
    with pytest.raises(InputError, match="rgb|r against rnt were not calibrated; calibrated are rnt against rnt"):
        calibration.threshold(["rgb"], ALL, 0.1)
    with pytest.raises(InputError, match=r"allowed are 0\.069 to 1, by its 30 identities: at least 78 identities"):
        calibration.threshold(ALL, ALL, 0.01)


def test_withheld_items_are_never_a_pair_with_themselves():
    whole = labelled(10, 4)
    present = np.broadcast_to([True, False, False], whole.present.shape)
    filled = np.repeat([True, False, False, True], 4)
    part = Embeddings(whole.vectors * filled, present, whole.items, whole.model)
    calibration = trireid.calibrate(whole, part, exclude="none", replicates=100)
    across = calibration.pair(["rgb"], ALL)
    assert across.num_same == 10 * 4 * 3  # ordered pairs of different items: which of them is withheld matters
    assert across.num_different == 40 * 36


def test_perfectly_separated_and_all_equal():
    apart = labelled(30, 4, noise=0.0, width=64)
    rates = trireid.calibrate(apart, replicates=100).rates[0]
    assert rates.false_non_match.rate.max() == 0.0
    assert 0.0 < rates.false_non_match.high[-1] < 0.15  # no error of 30 identities is not an error rate of 0
    equal = Embeddings(np.ones_like(apart.vectors), apart.present, apart.items, apart.model)
    rates = trireid.calibrate(equal, replicates=100).rates[0]
    assert rates.cosine.tolist() == pytest.approx([-1.0, 1.0], abs=1e-6)
    assert rates.false_match.rate.tolist() == [1.0, 0.0]
    assert rates.false_non_match.rate.tolist() == [0.0, 1.0]


@pytest.mark.slow
def test_saved_and_read_again_without_torch(tmp_path):
    path = tmp_path / "calibration.json"
    calibration = trireid.calibrate(labelled(30, 3), target_fmr=0.15, replicates=100)
    calibration = replace(calibration, data="a set", notes=("a note",))
    calibration.save(path)
    again = trireid.Calibration.load(path)
    assert again.threshold(ALL, ALL, 0.15) == calibration.threshold(ALL, ALL, 0.15)
    assert (again.notes, again.data, again.exclude, again.num_identities) == (("a note",), "a set", "camera", 30)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    code = (
        "import sys, trireid; trireid.calibrate, trireid.Calibration.load(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(InputError, match=r"of the feature joint of model aaaaaaaaaaaa\.\.\., the vectors are of head"):
        again.check_model("a" * 64, "head")
    for damage in (
        ("[", ""),
        ('"rate": [', '"rate": [2,'),
        ('"cosine": [', '"cosine": [9,'),
        ('"format": 1', '"format": 9'),
    ):
        (tmp_path / "damaged.json").write_text(path.read_text().replace(*damage, 1))
        with pytest.raises(RunError, match="damaged or no calibration"):
            trireid.Calibration.load(tmp_path / "damaged.json")
    with pytest.raises(RunError, match="does not exist"):
        trireid.Calibration.load(tmp_path / "none.json")


def test_groups_of_many_identities_change_intervals_alone(monkeypatch):
    embeddings = labelled(40, 3, presences=((1, 1, 1), (0, 1, 1), (1, 1, 1)))
    whole = trireid.calibrate(embeddings, replicates=100)
    monkeypatch.setattr(calibrating, "MOST_GROUPS", 10)
    grouped = trireid.calibrate(embeddings, replicates=100)
    for one, other in zip(whole.rates, grouped.rates, strict=True):
        for name in ("false_match", "false_non_match"):
            assert getattr(one, name).rate == pytest.approx(getattr(other, name).rate)
        assert one.identification[0].false_negative.rate == pytest.approx(other.identification[0].false_negative.rate)
    assert not np.allclose(whole.rates[0].false_match.high, grouped.rates[0].false_match.high)


def changed(embeddings, **changes):
    return Embeddings(**{**vars(embeddings), **changes})


def test_a_rule_that_items_have_no_place_for_is_reported_and_other_files_are_kept(tmp_path, caplog):
    items = [Item({}, key=str(number), identity=str(number // 2)) for number in range(60)]
    vectors = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    for cameras, words in (
        (0, "no item has a camera: exclude 'camera' leaves out nothing"),
        (5, "55 of 60 items have no"),
    ):
        named = [replace(item, camera="c") for item in items[:cameras]] + items[cameras:]
        model = ModelIdentity("a" * 64, "joint", ((0,), (1,), (2,)), 6)
        present = np.ones((60, 3), bool)
        found = trireid.calibrate(Embeddings(vectors, present, tuple(named), model), replicates=100)
        assert words in found.notes[0]
    path = tmp_path / "calibration.json"
    found.save(path)
    found.save(path)
    assert caplog.messages == [f"replaced: {path}"]
    path.write_text("{}")
    with pytest.raises(RunError, match="exists and is no calibration"):
        found.save(path)
    assert path.read_text() == "{}"


def test_what_cannot_be_calibrated():
    good = labelled(10, 3)
    other = ModelIdentity("b" * 64, "joint", BLOCKS, good.model.width)
    unlabelled = (Item({}, key="x"), *good.items[1:])
    refused = {
        "2 pairs; at least 9 identities|no pair of items of different identities": (labelled(1, 4),),
        "its 4 identities have 6 pairs; at least 9 identities are needed": (labelled(4, 3),),
        "no pair of items of one identity is left": (labelled(10, 1),),
        r"1 of 30 items have no identity \(x is the first\)": (changed(good, items=unlabelled),),
        "of another model or feature": (good, changed(good, model=other)),
        "no items": (changed(good, vectors=good.vectors[:0], present=good.present[:0], items=()),),
    }
    for message, embeddings in refused.items():
        with pytest.raises(InputError, match=message):
            trireid.calibrate(*embeddings, replicates=100)
    with pytest.raises(InputError, match=r"0\.001 cannot be calibrated with 10 identities: at least 246 identities"):
        trireid.calibrate(good, target_fmr=0.001, replicates=100)
    for settings in ({"exclude": "all"}, {"confidence": 1.0}, {"replicates": 9}, {"target_fmr": 0.0}):
        with pytest.raises(InputError, match=next(iter(settings)).split("_")[0]):
            trireid.calibrate(good, **settings)
