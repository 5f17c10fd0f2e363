"""The DET figure: its curves are the rates of the calibration, on axes of normal deviates."""

from statistics import NormalDist

import numpy as np
import pytest

from trireid.evaluation.calibration import Calibration, Curve, PairRates
from trireid.report.error_rates import error_section
from trireid.visualize.error_rates import det_curves, shown_pairs


def rates(first, second, fnmr):
    def curve(values):
        values = np.array(values)
        return Curve(values, values / 2, np.minimum(1.0, 2 * values))

    cosine = np.array([-1.0, 0.2, 0.4])
    return PairRates(
        first, second, (9, 9), 25, 300, 9, 99, cosine, false_match=curve([1.0, 0.5, 0.1]), false_non_match=curve(fnmr)
    )


def test_curves_are_those_of_the_calibration_and_the_page_says_them():
    pairs = (rates("r", "r", [0.0, 0.1, 0.3]), rates("r", "rnt", [0.0, 0.2, 0.4]), rates("rnt", "rnt", [0.0, 0.1, 0.2]))
    calibration = Calibration("0" * 64, "joint", pairs, data="some scenes", notes=("a note",))
    figure = det_curves(calibration)
    lines = figure.axes[0].get_lines()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["r", "r - rnt", "rnt"]
    inverse = NormalDist().inv_cdf
    assert lines[1].get_xdata()[1:].tolist() == pytest.approx([inverse(0.5), inverse(0.1)])
    assert lines[1].get_ydata()[1:].tolist() == pytest.approx([inverse(0.2), inverse(0.4)])
    assert np.isfinite(lines[0].get_ydata()).all()  # also where a rate is 0
    assert [each.second for each in shown_pairs(calibration, most=2)] == ["r", "rnt"]
    section = error_section(calibration, {"verification": {"feature": {"joint": {"fnmr_at_fmr_1e-2": 0.25}}}})
    assert "r - rnt has FNMR 40.0 % at FMR 10 %" in section["det"].svg
    assert section["error_rows"][1] == ("r - rnt", 25, ["40.0 [20.0, 80.0]", "–", "–", "–"])
    assert section["verification"] == "On the test split, FNMR: joint 25.0 % at FMR 1 %. "
    assert error_section(None, {}) == {"det": None, "verification": ""}
