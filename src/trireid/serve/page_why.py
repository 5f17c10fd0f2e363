"""The page that shows why a match is one, and the kept patches of a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from trireid.embedding.items import Item
from trireid.serve.explaining import MEDIA_TYPE, Explainer, Maps, can_explain, data_uri
from trireid.serve.frame import language_of, show
from trireid.serve.languages import Language
from trireid.serve.media import Media
from trireid.serve.pages import Kept, Pages, ranked
from trireid.serve.problems import Problem
from trireid.serve.searches import Search
from trireid.serve.uploads import decode_upload
from trireid.serve.views import match_view

router = APIRouter(include_in_schema=False)


def _explainer(pages: Pages) -> Explainer:
    if not can_explain(pages.service.embedder):
        raise Problem(404, "this service computes with an exported model, which cannot be looked into")
    if pages.explainer is None:
        pages.explainer = Explainer(pages.service.embedder)
    return pages.explainer


@router.get("/search/{number}/kept/{modality}")
async def kept_patches(number: str, modality: str, pages: Kept) -> Response:
    """The kept patches of the query in one modality."""
    search = pages.searches.find(number)
    if search.kept is None:
        explainer = _explainer(pages)
        item, _ = await _query_item(pages, search)
        maps = await pages.service.with_model(partial(explainer.kept, item))
        search.kept = maps.kept or maps.images
    if modality not in search.kept:
        raise Problem(404, "the query has no such image")
    return Response(search.kept[modality], media_type=MEDIA_TYPE)


async def _query_item(pages: Pages, search: Search) -> tuple[Item, bool]:
    """The query with its images, and whether they are thumbnails only."""
    service = pages.service
    if search.uploads:
        decode = {name: partial(decode_upload, upload, service.limits) for name, upload in search.uploads.items()}
        images = {name: await service.decode(work) for name, work in decode.items()}
        return Item(images=images, key="query", camera=search.item.camera), False
    return await _gallery_item(pages, search.key or "")


async def _gallery_item(pages: Pages, key: str) -> tuple[Item, bool]:
    (item,) = await pages.service.get([key])
    return await pages.service.read(partial(_with_images, pages.service.media, item, pages.service.embedder.modalities))


def _with_images(media: Media, item: Item, modalities: Sequence[str]) -> tuple[Item, bool]:
    """An item with the values of its own files, or else of its thumbnails.

    Raises:
        Problem: neither can be read.
    """
    paths = {name: str(path) for name, path in item.images.items()}
    key = item.key or ""
    originals = {name: media.original(paths.get(name)) for name in modalities}
    found: dict[str, Any] = {name: values for name, values in originals.items() if values is not None}
    if found and set(found) >= set(paths):
        return Item(images=found, key=key, camera=item.camera, box=item.box), False
    small = {name: media.small_values(key, name) for name in modalities}
    found = {name: values for name, values in small.items() if values is not None}
    if not found:
        raise Problem(404, "the images of this item are not here: neither its files, nor thumbnails")
    return Item(images=found, key=key, camera=item.camera), True


@router.get("/search/{number}/why")
async def why_page(request: Request, number: str, pages: Kept, match: str = "") -> Response:
    """Why a match is one."""
    search, explainer, t = pages.searches.find(number), _explainer(pages), language_of(request)
    _, matches = await ranked(pages, search)
    answer = next((each for each in matches if each.key == match), None)
    if answer is None:
        raise Problem(404, "this item is not among the matches any more")
    query, query_small = await _query_item(pages, search)
    item, item_small = await _gallery_item(pages, match)
    maps = await pages.service.with_model(partial(explainer.pair, query, item))
    shown = match_view(
        t,
        answer,
        rank=1,
        accepted=None,
        threshold=None,
        calibrated=await pages.rates() is not None,
        modalities=pages.service.embedder.modalities,
        others=0,
        is_first=True,
    )
    names = (t("query"), t("side_match", key=match))
    small = (query_small, item_small)
    return show(
        request,
        "why.jinja",
        search=search,
        words=shown.words,
        compared=" + ".join(answer.compared) or t("compared_nothing"),
        selects=bool(maps[0].kept),
        has_heat=bool(maps[0].heat),
        sides=[
            {
                "name": name,
                "note": f"{t('from_thumbnail') if is_small else ''} {one.without_heat}".strip(),
                "modalities": list(one.images),
                "rows": _rows(t, one, name),
            }
            for name, one, is_small in zip(names, maps, small, strict=True)
        ],
    )


def _rows(t: Language, maps: Maps, what: str) -> list[dict[str, Any]]:
    """The rows of a table: image, kept patches, and what speaks for the match."""
    counts = {name: t("kept_count", kept=kept, whole=whole) for name, (kept, whole) in maps.counts.items()}
    rows = [_row(t, t("row_image"), maps.images, what, {})]
    if maps.kept:
        rows.append(_row(t, t("row_kept"), maps.kept, what, counts))
    if maps.heat:
        rows.append(_row(t, t("row_heat"), maps.heat, what, {}))
    return rows


def _row(
    t: Language, name: str, pictures: Mapping[str, bytes], what: str, captions: Mapping[str, str]
) -> dict[str, Any]:
    cells = [
        {
            "uri": data_uri(picture),
            "alt": t("map_alt", row=name, what=what, modality=modality),
            "caption": captions.get(modality, ""),
        }
        for modality, picture in pictures.items()
    ]
    return {"name": name, "cells": cells}
