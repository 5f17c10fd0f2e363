"""What makes a match known: a distance, or the false match rate that the gallery's calibration promises."""

from __future__ import annotations

import logging
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trireid.errors import InputError
from trireid.evaluation.calibration import needed_identities
from trireid.gallery.layout import Layout, names_of, weighed

if TYPE_CHECKING:
    from trireid.evaluation.calibration import Calibration

_log = logging.getLogger(__name__)


@dataclass
class Threshold:
    """Decides about matches.

    Attributes:
        layout, unrelated: of the gallery.
        calibration: None: the gallery has none.
        distance: largest that is accepted; None: not used.
        fmr: false match rate; None: not used.
    """

    layout: Layout
    unrelated: float
    calibration: Calibration | None
    distance: float | None = None
    fmr: float | None = None
    _cosines: dict[tuple[int, int], float | InputError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fmr is not None and self.calibration is None:
            raise InputError(
                "fmr needs a calibration, and the gallery has none: make one with `trireid calibrate` and add it with "
                "`trireid gallery calibrate GALLERY calibration.json`, or give threshold (a distance)"
            )
        lowest = min((each.lowest for each in self.calibration.rates), default=1.0) if self.calibration else 0.0
        if self.fmr is not None and self.fmr < lowest:
            raise InputError(
                f"a false match rate of {self.fmr:g} is not calibrated for any pair of modalities; allowed are "
                f"{lowest:.3g} to 1: {needed_identities(self.fmr)}"
            )

    @property
    def is_used(self) -> bool:
        """Whether there is one."""
        return self.distance is not None or self.fmr is not None

    def accepts(self, query: int, item: int, distance: float, cosine: float | None) -> bool | None:
        """Whether a pair passes; None: these presences are not calibrated, or there is no threshold."""
        if not self.is_used:
            return None
        if cosine is None:
            return False
        if self.distance is not None:
            return distance <= self.distance
        least = self._cosine(query, item)
        return None if isinstance(least, InputError) else cosine >= least

    def distance_of(self, query: int, item: int) -> float | None:
        """The largest distance of a pair of presences that passes."""
        if self.fmr is None or not self.layout.shared(query, item):
            return self.distance
        least = self._cosine(query, item)
        if isinstance(least, InputError):
            return None
        return math.sqrt(max(0.0, weighed(2.0 - 2.0 * least, self.layout.weight(query, item), self.unrelated)))

    def rate(self, query: int, item: int, cosine: float | None) -> tuple[float | None, bool]:
        """The false match rate expected at a cosine, and whether it is only known to be at most this.

        It is where the cosine lies above the highest calibrated threshold.
        """
        if self.calibration is None or cosine is None:
            return None, False
        rates = self.calibration.pair(names_of(query), names_of(item))
        if rates is None:
            return None, False
        return rates.false_match_rate(cosine), cosine > float(rates.cosine[-1])

    def report(self) -> None:
        """Report the pairs of presences that could not be decided: what others of the call are does not matter."""
        failed = sorted(pair for pair, found in self._cosines.items() if isinstance(found, InputError))
        if not failed:
            return
        pairs = "; ".join(f"{'+'.join(names_of(one))} against {'+'.join(names_of(two))}" for one, two in failed)
        _log.warning(
            "a false match rate of %g is not calibrated for %s: such matches are neither accepted nor refused; "
            "calibrate with items like these, or with --all-presences",
            self.fmr,
            pairs,
        )

    def _cosine(self, query: int, item: int) -> float | InputError:
        pair = query, item
        if pair not in self._cosines:
            assert self.calibration is not None
            assert self.fmr is not None
            try:
                self._cosines[pair] = self.calibration.threshold(names_of(query), names_of(item), self.fmr)
            except InputError as error:
                self._cosines[pair] = error
        return self._cosines[pair]


def calibration_text(calibration: Calibration) -> str:
    """A calibration as the text of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration.json"
        calibration.save(path)
        return path.read_text(encoding="utf-8")


def read_calibration_text(text: str) -> Calibration:
    """A calibration from the text of its file.

    Raises:
        RunError: it is damaged.
    """
    from trireid.evaluation.calibration import Calibration

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration.json"
        path.write_text(text, encoding="utf-8")
        return Calibration.load(path)
