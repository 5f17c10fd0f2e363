"""What the templates show of items and matches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from trireid.serve.forms import date_text
from trireid.serve.languages import Language
from trireid.serve.schemas import ItemAnswer, MatchAnswer, Unshown
from trireid.serve.wording import chance_words, match_words

LONGEST_VALUE = 300


@dataclass(frozen=True)
class ItemView:
    """An item of the gallery on a page.

    Attributes:
        pictures: for each modality its address, None where there is none that can be shown.
        not_shown: modalities of which the item has an image that is not shown, and why.
        when: its time, empty where not known.
        address: of its page.
        identity_address: of all items of its identity.
    """

    key: str
    identity: str | None
    camera: str | None
    scene: str | None
    when: str
    pictures: Sequence[tuple[str, str | None]]
    not_shown: Mapping[str, Unshown]
    address: str
    identity_address: str


@dataclass(frozen=True)
class MatchView(ItemView):
    """A match on a page.

    Attributes:
        rank: from 1.
        words: how near it is.
        sign, kind: whether it passes the threshold, as a sign and a class of the style sheet.
        compared: which spectra were compared.
        chance: how many others are this near by chance; empty: not known, or none.
        distance: with three digits.
    """

    rank: int
    words: str
    sign: str
    kind: str
    compared: str
    chance: str
    distance: str


def item_view(item: ItemAnswer, modalities: Sequence[str]) -> ItemView:
    """An item for a template."""
    return ItemView(**_common(item, modalities))


def _common(item: ItemAnswer, modalities: Sequence[str]) -> dict[str, Any]:
    return {
        "key": item.key,
        "identity": item.identity,
        "camera": item.camera,
        "scene": item.scene,
        "when": date_text(item.time),
        "pictures": [(name, item.images.get(name)) for name in modalities],
        "not_shown": item.images_not_shown,
        "address": item_address(item.key),
        "identity_address": "" if item.identity is None else f"/gallery?{urlencode({'identity': item.identity})}",
    }


def item_address(key: str) -> str:
    """The page of an item; its key can hold anything."""
    return f"/item?{urlencode({'key': key})}"


def match_view(
    t: Language,
    match: MatchAnswer,
    *,
    rank: int,
    accepted: bool | None,
    threshold: float | None,
    calibrated: bool,
    modalities: Sequence[str],
    others: int,
    is_first: bool,
) -> MatchView:
    """A match for a template; `others` is the number of items that it was chosen from, `is_first` as `match_words`."""
    rate = match.false_match_rate
    words = match_words(
        t,
        distance=match.distance,
        rate=rate,
        accepted=accepted,
        threshold=threshold,
        calibrated=calibrated,
        comparable=bool(match.compared),
        is_first=is_first,
    )
    return MatchView(
        **_common(match, modalities),
        rank=rank,
        words=words,
        sign={True: "✓", False: "✗", None: ""}[accepted],
        kind={True: "near", False: "far", None: ""}[accepted],
        compared=t("compared", modalities=" + ".join(match.compared)) if match.compared else t("compared_nothing"),
        chance=chance_words(t, rate, others),
        distance=f"{match.distance:.3f}",
    )


def metadata_rows(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Further facts as texts, long ones cut."""
    rows = []
    for name, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        rows.append((str(name), text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"))
    return rows
