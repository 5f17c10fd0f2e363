"""Numbers of a search in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trireid.serve.languages import Language

if TYPE_CHECKING:
    from trireid.evaluation.calibration import Calibration

RATES = (0.2, 0.1, 0.01, 0.001, 0.0001)
"""False match rates that a person can choose from, where the calibration has pairs enough for them."""
DEFAULT_RATE = 0.001
MOST_OTHERS = 0.5


def one_in(rate: float) -> str:
    """The number of comparisons to one false match, rounded down to two digits that count.

    Example:
        >>> one_in(0.001), one_in(0.000123), one_in(0.109)
        ('1,000', '8,100', '9')
    """
    number = 1.0 / rate * (1.0 + 1e-9)
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return f"{int(number // unit) * unit:,}"


def offered_rates(calibration: Calibration | None) -> list[float]:
    """The false match rates of `RATES` that a calibration supports; its lowest where that is above them all."""
    if calibration is None or not calibration.rates:
        return []
    lowest = min(pair.lowest for pair in calibration.rates)
    rates = [rate for rate in RATES if rate >= lowest]
    if lowest > 1.0 or rates:
        return rates
    return [math.ceil(lowest * 1000) / 1000]


def default_rate(offered: Sequence[float]) -> float | None:
    """The rate that a search uses unless the person chooses another, None where none is offered."""
    return min(offered, key=lambda rate: abs(math.log(rate / DEFAULT_RATE))) if offered else None


def rate_words(t: Language, rate: float) -> str:
    """A false match rate, such as "1 false match in 1,000"."""
    if rate <= 0.0:
        return t("rate_none")
    if rate >= MOST_OTHERS:
        return t("rate_most")
    return t("rate_words", number=one_in(rate))


def match_words(
    t: Language,
    *,
    distance: float,
    rate: float | None,
    accepted: bool | None,
    threshold: float | None,
    calibrated: bool,
    comparable: bool,
    is_first: bool = True,
) -> str:
    """How near a match is, for a person.

    Args:
        t: the language.
        distance: of the match.
        rate: its false match rate, None: not known.
        accepted: whether it passes the threshold, None: there is none.
        threshold: as a distance, where it was given as one.
        calibrated: whether error rates are known at all.
        is_first: whether it is of the identity that is named as the answer; others are only near enough.
        comparable: whether query and match have a spectrum in common.
    """
    if not comparable:
        return t("not_comparable")
    if rate is not None:
        words = rate_words(t, rate)
        if accepted is None:
            return t("other_rate", rate=words)
        accepted_as = "same_object" if is_first else "near_enough"
        return t(accepted_as if accepted else "not_near_enough", rate=words)
    if accepted is not None and threshold is not None:
        return t("within_distance" if accepted else "beyond_distance", value=f"{threshold:.3g}")
    return t("rate_unknown") if calibrated else t("not_calibrated_short", value=f"{distance:.3f}")


def chance_words(t: Language, rate: float | None, others: int) -> str:
    """How many other objects of a gallery are this near by chance; empty where it says nothing.

    One comparison in 1,000 is rare, a gallery of 100,000 makes it a hundred.
    """
    if rate is None or rate <= 0.0 or rate >= MOST_OTHERS or others < 1:
        return ""
    expected = rate * others
    if expected < 0.05:
        return ""
    shown = f"{expected:.1f}" if expected < 10 else f"{expected:,.0f}"
    return t("chance", count=t.count(others), expected=shown)
