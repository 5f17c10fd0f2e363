"""One triplet: registered, deterministic, struck in one modality at a time."""

import numpy as np
import pytest

from trireid.data.synthetic.cameras import camera_light, camera_view
from trireid.data.synthetic.difficulty import EASY, HARD
from trireid.data.synthetic.identities import draw_identities
from trireid.data.synthetic.nuisances import (
    NIR,
    RGB,
    STRIKES,
    TIR,
    Nuisance,
    crossover,
    darkness,
    glare,
    noise,
    occlusion,
)
from trireid.data.synthetic.render import HEAT_TABLE, Shot, draw_labels, object_mask, render_triplet, shot_nuisance
from trireid.data.synthetic.shapes import COLD, NUM_BUILDS, NUM_PARTS, PART_AREAS, PART_NAMES, object_shapes

APPEARANCE = draw_identities(["a", "b", "c"], kind="person", difficulty=EASY, seed=0, split="train")["a"]
SIZES = {"person": (64, 32), "vehicle": (32, 64)}


def render(shot, *, kind="person", difficulty=HARD, seed=0, nuisances=True):
    size = SIZES[kind]
    return render_triplet(APPEARANCE, shot, kind=kind, size=size, difficulty=difficulty, seed=seed, nuisances=nuisances)


def shot_of(number, camera=1, night=False):
    return Shot(name=f"a_{number}.jpg", identity="a", view=camera, light=camera, night=night)


@pytest.mark.parametrize("kind", ["person", "vehicle"])
def test_pixels_have_the_size_and_form_of_their_spectrum(kind):
    images = render(shot_of(0), kind=kind)
    assert images.shape == (3, *SIZES[kind], 3)
    assert images.dtype == np.uint8
    assert (images[NIR] == images[NIR][..., :1]).all()
    colours = {tuple(colour) for colour in HEAT_TABLE}
    assert {tuple(colour) for colour in images[TIR].reshape(-1, 3)} <= colours
    assert (images[RGB] != images[RGB][..., :1]).any()


def test_equal_arguments_give_equal_pixels_and_others_do_not():
    reference = render(shot_of(0))
    np.testing.assert_array_equal(render(shot_of(0)), reference)
    for other in (render(shot_of(1)), render(shot_of(0, camera=2)), render(shot_of(0), seed=1)):
        assert (other != reference).mean() > 0.3


def test_a_nuisance_changes_one_modality_only():
    struck = {}
    for number in range(60):
        shot = shot_of(number)
        nuisance = shot_nuisance(shot, difficulty=HARD, seed=0)
        changed = (render(shot) != render(shot, nuisances=False)).any(axis=(1, 2, 3))
        expected = [nuisance is not None and nuisance.modality == modality for modality in range(3)]
        assert changed.tolist() == expected
        struck[nuisance and nuisance.modality] = struck.get(nuisance and nuisance.modality, 0) + 1
    assert set(struck) == {None, RGB, NIR, TIR}


def test_every_strike_is_drawn_and_easy_spares_more():
    def drawn(difficulty):
        return [shot_nuisance(shot_of(number), difficulty=difficulty, seed=0) for number in range(600)]

    hard, easy = drawn(HARD), drawn(EASY)
    assert {(item.strike, item.modality) for item in hard if item} == set(STRIKES)
    assert 240 < sum(item is not None for item in hard) < 360
    assert 50 < sum(item is not None for item in easy) < 140


@pytest.mark.parametrize("channels", [1, 3])
def test_what_each_strike_does(channels):
    random = np.random.default_rng(0)
    signal = random.uniform(0.2, 0.8, size=(40, 20, channels)).astype(np.float32)

    def struck(strike):
        return Nuisance(strike, RGB, 1.0)(signal, np.random.default_rng(1))

    assert struck(darkness).mean() < 0.2 * signal.mean()
    assert struck(glare).mean() > signal.mean()
    assert struck(crossover).std() == pytest.approx(0.1 * signal.std(), rel=1e-3)
    assert (struck(noise) - signal).std() == pytest.approx(0.25, rel=0.1)
    hidden = (struck(occlusion) != signal).any(axis=2)
    assert hidden.mean() == pytest.approx(0.4, abs=0.06)
    assert all(struck(strike).shape == signal.shape for strike in (darkness, glare, crossover, noise, occlusion))


def test_night_darkens_rgb_only():
    day, night = render(shot_of(0), nuisances=False), render(shot_of(0, night=True), nuisances=False)
    assert night[RGB].mean() < 0.6 * day[RGB].mean()
    np.testing.assert_array_equal(night[NIR:], day[NIR:])


def test_neighbouring_cameras_are_mirrored_and_differ_in_light():
    for number in range(1, 8):
        views = [camera_view(camera, difficulty=EASY, seed=0) for camera in (number, number + 1)]
        lights = [camera_light(camera, difficulty=EASY, seed=0) for camera in (number, number + 1)]
        assert views[0][0, 0] * views[1][0, 0] < 0
        assert (lights[0].nir_gain - 1) * (lights[1].nir_gain - 1) < 0
        assert lights[0].thermal_offset * lights[1].thermal_offset < 0
        assert np.abs(lights[0].rgb_gain - lights[1].rgb_gain).max() > 0.1


@pytest.mark.parametrize("build", range(NUM_BUILDS))
@pytest.mark.parametrize("kind", ["person", "vehicle"])
def test_every_part_of_every_build_is_seen(kind, build):
    labels = draw_labels(object_shapes(kind, build), (256, 128) if kind == "person" else (128, 256))
    assert set(np.unique(labels)) == set(range(COLD if kind == "person" else COLD + 1))
    shares = [(labels == part + 1).sum() / (labels > 0).sum() for part in range(NUM_PARTS)]
    assert min(shares) > 0.015
    assert len(PART_NAMES[kind]) == len(PART_AREAS[kind]) == NUM_PARTS


def test_distractors_use_the_colours_of_parts():
    shot = shot_of(0)
    image = render(shot, difficulty=EASY, nuisances=False)[RGB].astype(int)
    other = draw_identities(["a", "b", "c"], kind="person", difficulty=EASY, seed=9, split="train")["b"]
    recoloured = render_triplet(
        other, shot, kind="person", size=SIZES["person"], difficulty=EASY, seed=0, nuisances=False
    )[RGB].astype(int)
    same = (image == recoloured).all(axis=2)
    assert 0.3 < same.mean() < 0.95  # clutter and background belong to the shot, the object to the identity
    border = np.r_[same[0], same[:, 0], same[:, -1]]
    assert border.mean() > 0.9


@pytest.mark.parametrize("kind", ["person", "vehicle"])
def test_another_look_changes_the_object_alone(kind):
    others = draw_identities(list("abcdef"), kind=kind, difficulty=EASY, seed=1, split="test").values()
    first, second = (look for look in list(others)[:2])
    options = {"kind": kind, "size": (128, 64), "difficulty": HARD, "seed": 0}
    assert first.build == second.build
    mask = object_mask(first, shot_of(3), **options)
    one, other = (render_triplet(look, shot_of(3), nuisances=False, **options) for look in (first, second))
    changed = (one != other).any(axis=(0, 3))
    assert changed.any()
    assert not (changed & ~mask).any()
    assert 0.1 < mask.mean() < 0.9
