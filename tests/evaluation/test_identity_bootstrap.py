"""Sampling identities: weights of pairs and widths of intervals against literal loops."""

import numpy as np
import pytest

import reference_calibration as literal
from trireid.evaluation.calibration import widened
from trireid.evaluation.identity_bootstrap import few_factor, group_curve, identity_weights, pair_curve


def test_weights_of_pairs_are_products_of_the_counts_of_their_identities():
    random = np.random.default_rng(0)
    pairs = [(random.random(), *map(int, random.integers(0, 12, size=2))) for _ in range(900)]
    thresholds = [0.4, 0.7]
    accepted, different = np.zeros((2, 12, 12), dtype=np.float32), np.zeros((12, 12), dtype=np.float32)
    refused, same = np.zeros((2, 12)), np.zeros(12)
    for value, one, other in pairs:
        for place, threshold in enumerate(thresholds):
            accepted[place, one, other] += one != other and value >= threshold
            refused[place, one] += one == other and value < threshold
        different[one, other] += one != other
        same[one] += one == other
    weights = identity_weights(12, replicates=300, seed=1)
    assert (weights.sum(axis=1) == 12).all()
    ours = pair_curve(accepted, different, weights, confidence=0.9, num_identities=12, num_pairs=66)
    single = group_curve(refused, same, weights, confidence=0.9)
    for place, threshold in enumerate(thresholds):
        for curve, rate_of, factor in (
            (ours, literal.false_match_rate, few_factor(12, 0.9)),
            (single, literal.false_non_match_rate, few_factor(int((same > 0).sum()), 0.9)),
        ):
            rate = rate_of(pairs, threshold)
            assert curve.rate[place] == pytest.approx(rate)
            samples = [rate_of(pairs, threshold, weight=lambda each, row=row: row[each]) for row in weights.tolist()]
            ends = widened(rate, np.nanquantile(samples, [0.05, 0.95]), factor)
            assert (curve.low[place], curve.high[place]) == pytest.approx(tuple(ends), rel=1e-4)


def test_intervals_are_wider_for_few_identities():
    # Student's t for 10 degrees of freedom is 2.228, for the normal distribution it is 1.960.
    assert few_factor(11, 0.95) == pytest.approx(2.228 / 1.960 * 1.1**0.5, rel=2e-3)
    assert widened(0.5, np.array([0.4, 0.6]), 1.0).tolist() == pytest.approx([0.4, 0.6])
    assert widened(np.array([0.0, 1.0]), np.array([0.1, 0.9]), 2.0).tolist() == pytest.approx([0.2, 0.8])
