"""Who looks like whom: the group structure, and what an oracle can make of each spectrum."""

from itertools import combinations, permutations

import numpy as np
import pytest

from trireid.data.synthetic.difficulty import EASY, HARD
from trireid.data.synthetic.identities import (
    MAX_LOOKS,
    draw_identities,
    expected_average_precision,
    look_codes,
    oracle_map,
)
from trireid.errors import InputError

NAMES = [f"{number:04d}" for number in range(32)]


def drawn_codes(difficulty, names=NAMES, kind="person", seed=0):
    drawn = draw_identities(names, kind=kind, difficulty=difficulty, seed=seed, split="test")
    return np.array([drawn[name].looks for name in names])


@pytest.mark.parametrize("shared_pairs", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 12, 18, 31, 100])
def test_no_two_identities_share_all_looks(count, shared_pairs):
    codes = look_codes(count, shared_pairs=shared_pairs)
    assert len({tuple(row) for row in codes}) == count


@pytest.mark.parametrize("shared_pairs", [False, True])
@pytest.mark.parametrize("count", [3, 4, 5, 7, 12, 18, 31, 100])
def test_every_single_spectrum_is_ambiguous(count, shared_pairs):
    codes = look_codes(count, shared_pairs=shared_pairs)
    assert all(len(set(codes[:, spectrum])) < count for spectrum in range(3))


def test_easy_pairs_of_spectra_identify_and_hard_ones_leave_pairs():
    easy, hard = look_codes(32, shared_pairs=False), look_codes(32, shared_pairs=True)
    for first, second in combinations(range(3), 2):
        assert len({(row[first], row[second]) for row in easy}) == 32
        cells = [(row[first], row[second]) for row in hard]
        assert all(cells.count(cell) == 2 for cell in cells)


@pytest.mark.parametrize("kind", ["person", "vehicle"])
@pytest.mark.parametrize("difficulty", [EASY, HARD])
def test_a_look_is_one_set_of_parts_and_one_build(kind, difficulty):
    drawn = draw_identities(NAMES, kind=kind, difficulty=difficulty, seed=3, split="test").values()
    assert len({appearance.build for appearance in drawn}) == 2
    for spectrum in range(3):
        shown = {}
        for appearance in drawn:
            shown.setdefault(appearance.looks[spectrum], set()).add((appearance.build, appearance.parts[spectrum]))
        assert all(len(variants) == 1 for variants in shown.values())
        parts = [next(iter(variants))[1] for variants in shown.values()]
        assert len(set(parts)) == len(parts)  # other look, other parts


def test_drawing_depends_on_seed_and_split_only():
    def draw(seed=0, split="train", names=NAMES):
        return draw_identities(names, kind="person", difficulty=EASY, seed=seed, split=split)

    assert draw() == draw(names=NAMES[::-1])
    assert draw() != draw(seed=1)
    assert draw() != draw(split="test")


def test_expected_average_precision_is_the_mean_over_all_orders():
    for positive, total in [(1, 2), (2, 5), (3, 6), (4, 4)]:
        values = []
        for order in set(permutations([1] * positive + [0] * (total - positive))):
            hits = [sum(order[: rank + 1]) / (rank + 1) for rank in range(total) if order[rank]]
            values.append(sum(hits) / positive)
        assert expected_average_precision(positive, total) == pytest.approx(np.mean(values))


@pytest.mark.parametrize("count", [24, 32, 30, 155])
def test_hard_needs_all_three_spectra(count):
    codes = drawn_codes(HARD, names=[f"{number:04d}" for number in range(count)])
    singles = [oracle_map(codes, [spectrum]) for spectrum in range(3)]
    pairs = [oracle_map(codes, pair) for pair in combinations(range(3), 2)]
    assert max(singles) < 0.3
    assert max(pairs) < 0.8
    assert oracle_map(codes, range(3)) == 1.0


def test_easy_needs_two_spectra():
    codes = drawn_codes(EASY)
    assert max(oracle_map(codes, [spectrum]) for spectrum in range(3)) < 0.5
    assert min(oracle_map(codes, pair) for pair in combinations(range(3), 2)) == 1.0


def test_docstring_figures_of_24_identities():
    names = NAMES[:24]
    assert oracle_map(drawn_codes(EASY, names=names), [0]) == pytest.approx(0.46, abs=0.005)
    hard = drawn_codes(HARD, names=names)
    assert oracle_map(hard, [0]) == pytest.approx(0.24, abs=0.005)
    pairs = sorted(oracle_map(hard, pair) for pair in combinations(range(3), 2))
    assert pairs[0] == pytest.approx(0.46, abs=0.005)
    assert pairs[-1] == pytest.approx(0.73, abs=0.005)


def test_too_many_identities_is_an_error():
    names = [f"{number:06d}" for number in range(2 * 3 * MAX_LOOKS)]
    with pytest.raises(InputError, match="fewer identities"):
        draw_identities(names, kind="person", difficulty=EASY, seed=0, split="train")
