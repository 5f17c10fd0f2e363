"""The section of a page on error rates: the calibration of a run, and the false non-match rates of its test."""

from __future__ import annotations

from typing import Any

from trireid.evaluation.calibration import Calibration, PairRates
from trireid.report.media import plot
from trireid.report.values import percent
from trireid.train.run_files import RunMetrics
from trireid.visualize.error_rates import det_curves, pair_name, shown_pairs

FALSE_MATCH_RATES = (0.1, 0.01, 0.001, 0.0001)


def error_section(calibration: Calibration | None, metrics: RunMetrics) -> dict[str, Any]:
    """What the template shows of the error rates of thresholds."""
    verification = _verification(metrics)
    if calibration is None:
        return {"det": None, "verification": verification}
    shown = shown_pairs(calibration)
    title = "False non-match rate over false match rate (DET)"
    alt = f"DET curves of {len(shown)} pairs of presences: {', '.join(_in_words(each) for each in shown)}"
    fewer = (
        f"{len(shown)} of {len(calibration.rates)} pairs of presences." if len(shown) < len(calibration.rates) else ""
    )
    size = f"{calibration.num_items} items of {calibration.num_identities} identities"
    return {
        "det": plot(title, det_curves(calibration), alt=alt, note=fewer),
        "calibrated": f"Calibrated on {calibration.data}: {size}; the bands are intervals over identities.",
        "confidence": f"{100 * calibration.confidence:g}",
        "error_columns": [f"FMR {100 * fmr:g} %" for fmr in FALSE_MATCH_RATES],
        "error_rows": [
            (pair_name(each), each.num_identities, [_fnmr(each, fmr) for fmr in FALSE_MATCH_RATES])
            for each in calibration.rates
        ],
        "calibration_notes": calibration.notes,
        "verification": verification,
    }


def _fnmr(rates: PairRates, fmr: float) -> str:
    """The false non-match rate with its interval in percent; a dash where the identities are too few."""
    if fmr < rates.lowest:
        return "–"
    curve, place = rates.false_non_match, rates.place(fmr)
    return f"{percent(curve.rate[place])} [{percent(curve.low[place])}, {percent(curve.high[place])}]"


def _in_words(rates: PairRates) -> str:
    """A curve for those who do not see it: its end at the lowest false match rate."""
    place = rates.place(rates.lowest)
    rate = percent(rates.false_non_match.rate[place])
    return f"{pair_name(rates)} has FNMR {rate} % at FMR {100 * rates.lowest:.2g} %"


def _verification(metrics: RunMetrics) -> str:
    """The false non-match rates of the test split, or why there are none; empty for runs that did not look."""
    found = metrics.get("verification")
    if found is None:
        return ""
    names = {"fnmr_at_fmr_1e-2": "1 %", "fnmr_at_fmr_1e-3": "0.1 %"}
    parts = [
        f"{feature} {percent(value)} % at FMR {names[name]}"
        for feature, values in found["feature"].items()
        for name, value in values.items()
        if name in names
    ]
    text = f"On the test split, FNMR: {', '.join(parts)}. " if parts else ""
    note = found.get("note", "")
    return text + (f"{note[:1].upper()}{note[1:]}." if note else "")
