"""How often a threshold accepts a wrong pair and refuses a right one: the type that holds these rates. No torch.

Terms are those of ISO/IEC 19795-1. A pair is accepted where its cosine is at least the threshold. False match rate
(FMR): share of the pairs of different identities that are accepted. False non-match rate (FNMR): share of the pairs of
one identity that are refused. Open-set identification at rank 1: false positive identification rate (FPIR), the share
of queries without a mate in the gallery that find an accepted item, and false negative identification rate (FNIR), the
share of queries with a mate whose first item is not an accepted mate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trireid.errors import InputError, printable
from trireid.names import MODALITIES

LEAST_ERRORS = 30
"""A rate is calibrated where at least this many errors are expected among the pairs of identities.

Source: the rule of 30 of Doddington et al., The NIST speaker recognition evaluation, Speech Communication 31 (2000):
with 30 errors the true rate lies within 30 % of the observed one with a confidence of 90 %.
"""

Floats = NDArray[np.float64]
Present = Iterable[bool] | Iterable[str] | NDArray[np.bool_]
"""Which modalities an item has: a bool for each of rgb, nir, tir, or their names."""


@dataclass(frozen=True)
class Curve:
    """A rate at each of T thresholds, with its interval.

    Attributes:
        rate: `(T,)` observed, in [0, 1].
        low, high: `(T,)` ends of the interval for the rate of all identities like those of the calibration.
    """

    rate: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Identification:
    """Open-set identification at rank 1, of queries with one set of modalities in a gallery with another.

    Each query is searched twice: without its mates (FPIR), and with them (FNIR). Both rates grow with the gallery, so
    they hold for this size only. The interval is over the identities of the queries; the gallery stays as it is.

    Attributes:
        query: letters of the modalities of the queries.
        num_queries: queries that have an item of another identity to be mistaken for.
        num_mated: queries that have a mate.
        num_gallery: items of the gallery.
        num_gallery_identities: identities of the gallery.
        false_positive: FPIR at each threshold.
        false_negative: FNIR at each threshold.
    """

    query: str
    num_queries: int
    num_mated: int
    num_gallery: int
    num_gallery_identities: int
    false_positive: Curve
    false_negative: Curve


@dataclass(frozen=True)
class PairRates:
    """Error rates of pairs of items with one set of modalities each; which of the two is the query does not matter.

    Attributes:
        first, second: letters of the modalities of the two items, such as `rnt` and `t`.
        num_items: items with the first set and with the second.
        num_identities: identities with a pair of different identities.
        num_identity_pairs: pairs of different identities with a pair of items: pairs of items of the same two
            identities are not independent, so that this number limits which rates can be calibrated.
        num_same, num_different: pairs of items of one identity, and of different ones.
        cosine: `(T,)` thresholds, ascending.
        false_match, false_non_match: FMR and FNMR at each threshold.
        identification: for each side as the query.
    """

    first: str
    second: str
    num_items: tuple[int, int]
    num_identities: int
    num_identity_pairs: int
    num_same: int
    num_different: int
    cosine: Floats
    false_match: Curve
    false_non_match: Curve
    identification: tuple[Identification, ...] = ()

    @property
    def lowest(self) -> float:
        """The lowest false match rate that is calibrated, see `lowest_rate`."""
        return lowest_rate(self.num_identity_pairs)

    def place(self, fmr: float) -> int:
        """The number of the smallest threshold whose observed false match rate is at most `fmr`.

        Raises:
            InputError: the rate is not calibrated.
        """
        if not self.lowest <= fmr <= 1.0:
            raise InputError(
                f"a false match rate of {fmr:g} is not calibrated for {self.first} against {self.second}; allowed are "
                f"{self.lowest:.3g} to 1, by its {self.num_identities} identities: {needed_identities(fmr)}"
            )
        return int(np.argmax(self.false_match.rate <= fmr))

    def false_match_rate(self, cosine: float) -> float:
        """The observed false match rate at a threshold of this cosine; between two thresholds that of the lower one."""
        place = int(np.searchsorted(self.cosine, cosine, side="right")) - 1
        return float(self.false_match.rate[place]) if place >= 0 else 1.0

    def expected_interval(self, fmr: float, num_identities: int) -> tuple[float, float]:
        """Where the rate observed on other identities will lie, at the threshold for a false match rate.

        The interval of `false_match` is for the true rate. A rate that is observed on m other identities has an error
        of its own, so that the interval is wider: by sqrt(1 + n / m), on the scale of log odds, where n identities were
        calibrated.

        Args:
            fmr: the false match rate that the threshold is for.
            num_identities: m, at least 1.

        Raises:
            InputError: the rate is not calibrated.
        """
        place = self.place(fmr)
        rate, low, high = (float(each[place]) for each in vars(self.false_match).values())
        width = math.sqrt(1.0 + self.num_identities / num_identities)
        ends = widened(rate, np.array([low, high]), width)
        return float(ends[0]), float(ends[1])


@dataclass(frozen=True)
class Calibration:
    """The error rates of a model's features on labelled items that it was not trained on.

    Attributes:
        fingerprint, feature: of the model, see `embedding.embeddings.ModelIdentity`.
        rates: for every pair of presences that was calibrated.
        exclude: which pairs of items do not count: those of one camera or scene, as of a `Protocol`.
        confidence: of all intervals, in (0, 1).
        replicates: bootstrap samples of the identities behind an interval.
        seed: of the bootstrap.
        num_items, num_identities: of all items.
        data: what the items are of.
        description: of the model, for people.
        version: of trireid that calibrated.
        notes: what a reader must know, one line each.

    Example:
        >>> import numpy as np
        >>> half = Curve(rate=np.array([1.0, 0.1]), low=np.array([1.0, 0.05]), high=np.array([1.0, 0.2]))
        >>> cosine = np.array([-1.0, 0.4])
        >>> rates = PairRates("rnt", "rnt", (99, 99), 33, 528, 99, 4752, cosine, false_match=half, false_non_match=half)
        >>> calibration = Calibration(fingerprint="0" * 64, feature="joint", rates=(rates,))
        >>> everything = ("rgb", "nir", "tir")
        >>> calibration.threshold(everything, everything, fmr=0.1)
        0.4
        >>> calibration.false_match_rate(everything, everything, cosine=0.6)
        0.1
    """

    fingerprint: str
    feature: str
    rates: tuple[PairRates, ...]
    exclude: str = "none"
    confidence: float = 0.95
    replicates: int = 0
    seed: int = 0
    num_items: int = 0
    num_identities: int = 0
    data: str = ""
    description: str = ""
    version: str = ""
    notes: tuple[str, ...] = ()

    def pair(self, query_present: Present, gallery_present: Present) -> PairRates | None:
        """The rates of two presences in any order; None where they were not calibrated."""
        names = {presence_letters(query_present), presence_letters(gallery_present)}
        return next((each for each in self.rates if {each.first, each.second} == names), None)

    def threshold(self, query_present: Present, gallery_present: Present, fmr: float) -> float:
        """The smallest cosine to accept, so that at most this share of pairs of different identities is accepted.

        The smallest calibrated threshold whose observed false match rate is at most `fmr`; equal cosines are accepted
        or refused together. It is a rate on the calibrated items: `PairRates.false_match` has its interval.

        Args:
            query_present, gallery_present: modalities of the two items, `(M,)` bool or names.
            fmr: false match rate, in (0, 1].

        Raises:
            InputError: these presences or this rate were not calibrated.
        """
        rates = self.pair(query_present, gallery_present)
        if rates is None:
            pair = " against ".join(presence_letters(each) for each in (query_present, gallery_present))
            known = ", ".join(f"{each.first} against {each.second}" for each in self.rates)
            raise InputError(
                f"items with the modalities {pair} were not calibrated; calibrated are {known}: calibrate with items "
                "like these, or with --all-presences"
            )
        return float(rates.cosine[rates.place(fmr)])

    def false_match_rate(self, query_present: Present, gallery_present: Present, cosine: float) -> float | None:
        """The share of pairs of different identities that are at least as near, on the calibrated items.

        Between two thresholds it is the rate of the lower one, and above the highest the lowest calibrated rate: at
        most this. None where these presences were not calibrated.
        """
        rates = self.pair(query_present, gallery_present)
        return None if rates is None else rates.false_match_rate(cosine)

    def check_model(self, fingerprint: str, feature: str) -> None:
        """Raise InputError unless it was made with this model and feature."""
        if (self.fingerprint, self.feature) != (fingerprint, feature):
            raise InputError(
                f"the calibration is of the feature {printable(self.feature)} of model "
                f"{printable(self.fingerprint, limit=15)}, the vectors are of {printable(feature)} of "
                f"{printable(fingerprint, limit=15)}: calibrate the model that made the vectors, with the same centring"
            )

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            RunError: the file cannot be written.
        """
        from trireid.evaluation.calibration_file import write_calibration

        write_calibration(Path(path), self)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            RunError: the file is not there, damaged, or of another version.
        """
        from trireid.evaluation.calibration_file import read_calibration

        return cls(**vars(read_calibration(Path(path))))


def presence_letters(present: Present) -> str:
    """The first letters of the modalities that are present, in their order: `rnt` for all three.

    Example:
        >>> presence_letters([True, False, True]), presence_letters(["tir", "nir"])
        ('rt', 'nt')
    """
    given = list(present)
    if all(isinstance(each, str) for each in given):
        known = set(given) <= set(MODALITIES)
        letters = "".join(name[0] for name in MODALITIES if name in given)
    else:
        known = len(given) == len(MODALITIES)
        letters = "".join(name[0] for name, is_there in zip(MODALITIES, given, strict=False) if is_there)
    if not known or not letters:
        shown = printable(repr([each if isinstance(each, str) else bool(each) for each in given]), limit=60)
        raise InputError(
            f"{shown} are no modalities of an item; give one or more of {', '.join(MODALITIES)}, or a bool for each"
        )
    return letters


def lowest_rate(num_identity_pairs: int) -> float:
    """The lowest false match rate with `LEAST_ERRORS` errors among so many pairs of identities; above 1: none."""
    return LEAST_ERRORS / num_identity_pairs if num_identity_pairs else math.inf


def least_identities(fmr: float) -> int:
    """How many identities have pairs enough for a false match rate.

    Example:
        >>> least_identities(0.1), least_identities(0.001)
        (25, 246)
    """
    pairs = LEAST_ERRORS / fmr
    count = max(2, math.floor((1.0 + math.sqrt(1.0 + 8.0 * pairs)) / 2.0))
    return count if count * (count - 1) / 2 >= pairs * (1.0 - 1e-12) else count + 1


def needed_identities(fmr: float) -> str:
    """What a message says on a rate that is too low, or is none."""
    if not 0.0 < fmr <= 1.0:
        return "a rate lies above 0 and up to 1"
    return (
        f"at least {least_identities(fmr):,} identities are needed for {fmr:g}, so that their pairs give "
        f"{LEAST_ERRORS} errors"
    )


def widened(rate: float | Floats, ends: Floats, factor: float | Floats) -> Floats:
    """The ends of an interval, moved away from the rate by a factor on the scale of log odds.

    A rate of 0 or 1 has no log odds: the distance of the other end is multiplied instead.
    """
    centre = np.asarray(rate, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        moved = 1.0 / (1.0 + np.exp(-(log_odds(centre) + factor * (log_odds(ends) - log_odds(centre)))))
    at_zero, at_one = np.minimum(1.0, ends * factor), np.maximum(0.0, 1.0 - (1.0 - ends) * factor)
    return np.where(centre <= 0.0, at_zero, np.where(centre >= 1.0, at_one, moved))


def log_odds(rate: Floats) -> Floats:
    """The logarithm of rate / (1 - rate): infinite at 0 and 1."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(rate) - np.log1p(-rate), dtype=np.float64)
