"""From what the gallery gives to what the API answers."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from pydantic import BaseModel

from trireid.names import MODALITIES, Exclusion
from trireid.serve.problems import Problem
from trireid.serve.schemas import (
    CalibrationAnswer,
    EmbedAnswer,
    EmbeddedItem,
    Encoding,
    FilterFields,
    ItemAnswer,
    MatchAnswer,
    ModelAnswer,
    PairAnswer,
    QueryAnswer,
    SearchAnswer,
    ThresholdAnswer,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trireid.embedding.embeddings import Embeddings, ModelIdentity
    from trireid.embedding.items import Item
    from trireid.evaluation.calibration import Calibration, PairRates
    from trireid.gallery.filters import Filter
    from trireid.serve.service import Service

RATES = (0.1, 0.01, 0.001, 0.0001)
"""False match rates whose thresholds are shown."""
_CALIBRATION = (
    "fingerprint", "feature", "exclude", "confidence", "replicates", "num_items", "num_identities", "data",
    "description", "version", "notes",
)  # fmt: skip


def image_address(key: str, modality: str) -> str:
    """Where the service shows an image of an item; the key is one segment of the path, whatever it holds."""
    return f"/v1/items/{quote(key, safe='')}/images/{modality}"


def model_answer(model: ModelIdentity, modalities: Sequence[str]) -> ModelAnswer:
    """What vectors are made by."""
    return ModelAnswer(
        fingerprint=model.fingerprint,
        feature=model.feature,
        width=model.width,
        blocks=[list(block) for block in model.blocks],
        modalities=list(modalities),
        description=model.description,
        version=model.version,
    )


def embed_answer(embeddings: Embeddings, encoding: Encoding, modalities: Sequence[str]) -> EmbedAnswer:
    """The features of some items."""
    vectors = np.ascontiguousarray(embeddings.vectors, dtype="<f4")
    return EmbedAnswer.model_construct(
        model=model_answer(embeddings.model, modalities),
        items=[
            EmbeddedItem.model_construct(
                key=item.key,
                present=dict(zip(MODALITIES, (bool(each) for each in present), strict=True)),
                vector=base64.b64encode(vector.tobytes()).decode() if encoding == "base64" else vector.tolist(),
            )
            for item, present, vector in zip(embeddings.items, embeddings.present, vectors, strict=True)
        ],
    )


def item_answer(service: Service, item: Item) -> ItemAnswer:
    """An item of the gallery."""
    return ItemAnswer(**_about(service, item.key or "", item.images, item))


def _about(service: Service, key: str, images: Mapping[str, Any], known: Any) -> dict[str, Any]:
    shown, not_shown = service.pictured(key, images)
    return {
        "key": key,
        "identity": known.identity,
        "camera": known.camera,
        "scene": known.scene,
        "time": known.time,
        "images": {name: image_address(key, name) for name in shown},
        "images_not_shown": not_shown,
        "metadata": dict(known.metadata),
    }


def notes_on(queries: Sequence[Item], exclude: Exclusion) -> list[str]:
    """What a rule of exclusion could not be applied to: it hides nothing from a query of unknown camera, say."""
    needed = {"camera": ("identity", "camera"), "scene": ("identity", "scene"), "cross_camera": ("camera",)}
    names = needed.get(exclude, ())
    without = sum(any(getattr(query, name) is None for name in names) for query in queries)
    if not without:
        return []
    return [
        f"{without} of {len(queries)} queries have no {' or no '.join(names)}: exclude={exclude} hides nothing there"
    ]


def notes_on_rate(results: Sequence[Any], fmr: float | None) -> list[str]:
    """Where a false match rate could not be used."""
    open_ones = [match for result in results for match in result.matches if match.accepted is None]
    if fmr is None or not open_ones:
        return []
    return [f"fmr={fmr:g} is not calibrated for {len(open_ones)} of the matches: they are neither accepted nor refused"]


def search_answer(service: Service, results: Sequence[Any], notes: Sequence[str] = ()) -> SearchAnswer:
    """The results of some queries."""
    return SearchAnswer(
        notes=list(notes),
        results=[
            QueryAnswer(
                query=result.key,
                known=result.known,
                threshold=_number(result.threshold),
                matches=[_match(service, match) for match in result.matches],
            )
            for result in results
        ],
    )


def calibration_answer(calibration: Calibration | None) -> CalibrationAnswer:
    """A calibration in short: what it is of, and its thresholds for some false match rates."""
    if calibration is None:
        return CalibrationAnswer(calibrated=False, about=None, pairs=[])
    about = {name: plain(getattr(calibration, name)) for name in _CALIBRATION}
    return CalibrationAnswer(calibrated=True, about=about, pairs=[_pair(rates) for rates in calibration.rates])


def _pair(rates: PairRates) -> PairAnswer:
    places = {fmr: rates.place(fmr) for fmr in RATES if fmr >= rates.lowest}
    return PairAnswer(
        first=rates.first,
        second=rates.second,
        pairs_of_one_identity=rates.num_same,
        pairs_of_two_identities=rates.num_different,
        lowest_fmr=rates.lowest,
        thresholds=[
            ThresholdAnswer(
                fmr=fmr,
                cosine=float(rates.cosine[place]),
                false_match_rate=float(rates.false_match.rate[place]),
                false_non_match_rate=float(rates.false_non_match.rate[place]),
            )
            for fmr, place in places.items()
        ],
    )


def _match(service: Service, match: Any) -> MatchAnswer:
    return MatchAnswer(
        **_about(service, match.key, match.images, match),
        distance=match.distance,
        similarity=_number(match.similarity),
        accepted=match.accepted,
        compared=list(match.compared),
        false_match_rate=_number(match.false_match_rate),
        rate_is_bound=match.rate_is_bound,
    )


def _number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is None or math.isfinite(value) else None


def filter_of(fields: FilterFields | None) -> Filter | None:
    """The conditions of a request as a filter of the gallery; None: all items."""
    from trireid.gallery.filters import Filter

    if fields is None or fields == FilterFields():
        return None
    return Filter(**fields.model_dump())


def check_metadata(number: int, metadata: Mapping[str, Any], most: int) -> None:
    """Refuse metadata that is too large, or that JSON cannot hold.

    Raises:
        Problem: 413 or 422.
    """
    try:
        size = len(json.dumps(dict(metadata), allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise Problem(422, f"items.{number}.metadata: it holds NaN, infinity or too deep a nesting") from error
    if size > most:
        raise Problem(413, f"items.{number}.metadata: it has {size} bytes as JSON; at most {most} are taken")


def plain(value: Any) -> Any:
    """Facts as JSON: dataclasses and models become objects; numbers that JSON does not have become null."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclass_fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return _number(value)
    return value if isinstance(value, str | int | bool) or value is None else str(value)
