"""`calibration.json`: a `Calibration` on the disk. No torch."""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, TypeAdapter, model_validator

from trireid.errors import RunError, printable
from trireid.evaluation.calibration import Calibration, Curve, Identification, PairRates
from trireid.files import is_file, write_text
from trireid.typed_json import Count, Document, Number, Share, Text, checked, read_object

_log = logging.getLogger(__name__)

FORMAT_VERSION = 1
Letters = Annotated[str, Field(pattern=r"^r?n?t?$", min_length=1)]
Shares = Annotated[list[Share], Field(min_length=1)]


class _Curve(Document):
    rate: Shares
    low: Shares
    high: Shares

    def curve(self) -> Curve:
        return Curve(*(np.array(each, dtype=np.float64) for each in (self.rate, self.low, self.high)))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.rate) == len(self.low) == len(self.high):
            raise ValueError("rate, low and high must be of one length")
        return self


class _Identification(Document):
    query: Letters
    num_queries: Count
    num_mated: Count
    num_gallery: Count
    num_gallery_identities: Count
    false_positive: _Curve
    false_negative: _Curve


class _Pair(Document):
    first: Letters
    second: Letters
    num_items: Annotated[list[Count], Field(min_length=2, max_length=2)]
    num_identities: Count
    num_identity_pairs: Count
    num_same: Count
    num_different: Count
    cosine: Annotated[list[Number], Field(min_length=1)]
    false_match: _Curve
    false_non_match: _Curve
    identification: list[_Identification]

    @model_validator(mode="after")
    def _check(self) -> Self:
        curves = [self.false_match, self.false_non_match]
        curves += [curve for each in self.identification for curve in (each.false_positive, each.false_negative)]
        if any(len(curve.rate) != len(self.cosine) for curve in curves):
            raise ValueError("each curve must have one rate for each cosine")
        if any(low >= high for low, high in pairwise(self.cosine)):
            raise ValueError("the cosines must ascend")
        rates = self.false_match.rate
        if any(before < after for before, after in pairwise(rates)):
            raise ValueError("the false match rates must not rise with the cosine")
        return self


class _File(Document):
    """The content of the file."""

    format: Literal[1]
    fingerprint: Text
    feature: Text
    description: Text
    version: Text
    data: Text
    exclude: Text
    confidence: Share
    replicates: Count
    seed: int
    num_items: Count
    num_identities: Count
    notes: list[Text]
    rates: list[_Pair]


_FILE = TypeAdapter(_File)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration, whole or not at all; an older one is replaced, with a warning.

    Raises:
        RunError: the path is another kind of file, or cannot be written.
    """
    check_replaceable(path)
    is_there = path.exists()
    write_text(path, json.dumps({"format": FORMAT_VERSION, **_plain(calibration)}, indent=1) + "\n")
    if is_there:
        _log.warning("replaced: %s", printable(str(path)))


def check_replaceable(path: Path) -> None:
    """Find out before long work whether nothing but a calibration would be lost where one is written.

    Raises:
        RunError: the path is another kind of file.
    """
    if not is_file(path) or not path.stat().st_size:
        return
    try:
        known = {"fingerprint", "rates"} <= read_object(path).keys()
    except (OSError, ValueError):
        known = False
    if not known:
        raise RunError(
            f"{printable(str(path))} exists and is no calibration, or a damaged one: it is not replaced; choose "
            "another file with --out, or remove it"
        )


def read_calibration(path: Path) -> Calibration:
    """Read a calibration.

    Raises:
        RunError: the file is not there, damaged, or of another version.
    """
    try:
        content = checked(_FILE, read_object(path))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; `trireid calibrate` writes a calibration") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path} is damaged or no calibration ({reason}); make it again: trireid calibrate") from None
    plain = {field.name: getattr(content, field.name) for field in fields(Calibration)}
    rates = tuple(_pair(each) for each in content.rates)
    return Calibration(**{**plain, "rates": rates, "notes": tuple(content.notes)})


def _pair(read: _Pair) -> PairRates:
    plain = {field.name: getattr(read, field.name) for field in fields(PairRates)}
    found = tuple(_identification(each) for each in read.identification)
    curves = {"false_match": read.false_match.curve(), "false_non_match": read.false_non_match.curve()}
    sizes = (read.num_items[0], read.num_items[1])
    return PairRates(
        **{**plain, **curves, "num_items": sizes, "cosine": np.array(read.cosine), "identification": found}
    )


def _identification(read: _Identification) -> Identification:
    plain = {field.name: getattr(read, field.name) for field in fields(Identification)}
    curves = {"false_positive": read.false_positive.curve(), "false_negative": read.false_negative.curve()}
    return Identification(**{**plain, **curves})


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and arrays as JSON has them."""
    if isinstance(value, Calibration | PairRates | Identification | Curve):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
