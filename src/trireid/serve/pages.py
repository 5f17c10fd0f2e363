"""The pages of a service: search, results, and what they keep. Others are in `page_gallery.py`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response

from trireid.embedding.items import Item
from trireid.errors import InputError
from trireid.gallery.filters import Filter
from trireid.serve import answers
from trireid.serve.explaining import Explainer, can_explain
from trireid.serve.forms import Form, date_text, item_fields, read_form
from trireid.serve.frame import go, language_of, pages_of, show
from trireid.serve.journal import Action, Journal
from trireid.serve.languages import Language
from trireid.serve.media import MEDIA_TYPE
from trireid.serve.overview import Overviews
from trireid.serve.problems import Problem
from trireid.serve.reviewing import Reviewer
from trireid.serve.schemas import ItemFields, MatchAnswer, SearchRequest
from trireid.serve.searches import Search, Searches
from trireid.serve.service import Service
from trireid.serve.uploads import Uploads
from trireid.serve.views import ItemView, item_address, item_view, match_view
from trireid.serve.wording import default_rate, offered_rates, one_in, rate_words

MOST_SHOWN = 100
"""Matches of a page."""
REPORT = "report.html"
"""Of a run folder, as `trireid report` writes it."""
NO_FILTER = {"cameras": (), "identity": "", "presence": "", "after": "", "before": ""}
router = APIRouter(include_in_schema=False)


class Pages:
    """What the pages of one service keep.

    Args:
        service: model and gallery.
        folder: for the journal of changes.
        run: run folder, whose report is shown.
    """

    def __init__(self, service: Service, *, folder: Path, run: Path | None) -> None:
        self.service = service
        self.journal = Journal(folder / "changes.jsonl")
        self.reviewer = Reviewer(service, self.journal)
        self.searches = Searches()
        self.overviews = Overviews(service)
        self.explainer: Explainer | None = None
        self._report = None if run is None else run / REPORT

    @property
    def report(self) -> Path | None:
        """The page of the run, where it was made; also after the service was started."""
        return self._report if self._report is not None and self._report.is_file() else None

    async def rates(self) -> list[float] | None:
        """The false match rates that can be chosen, None without a calibration."""
        found = await self.service.read(lambda: self.service.gallery.calibration)
        return None if found is None else offered_rates(found)

    def done(self, number: str) -> Action | None:
        """An action that a page reports."""
        return self.journal.get(number)


def the_pages(request: Request) -> Pages:
    """What the pages of this app keep."""
    return pages_of(request)


Kept = Annotated[Pages, Depends(the_pages)]
Sent = Annotated[Form, Depends(read_form)]


def add_pages(app: FastAPI, *, folder: Path, run: Path | None) -> None:
    """Add all pages to an app that has a service."""
    from trireid.serve import page_gallery, page_why

    app.state.pages = Pages(app.state.service, folder=folder, run=run)
    app.include_router(router)
    app.include_router(page_gallery.router)
    app.include_router(page_why.router)


@router.get("/")
async def search_page(request: Request, pages: Kept, item: str = "") -> Response:
    """The form of a search, with images or with an item of the gallery."""
    t, service, rates = language_of(request), pages.service, await pages.rates()
    return show(
        request,
        "search.jinja",
        item=(await views_of(pages, await service.get([item])))[0] if item else None,
        items=await service.count(),
        modalities=service.embedder.modalities,
        calibrated=rates is not None,
        rates=[(rate, t("rate_option", number=one_in(rate))) for rate in rates or ()],
        default_rate=default_rate(rates or ()),
        known=await pages.overviews.get(),
        given=NO_FILTER,
    )


@router.post("/search")
async def search(form: Sent, pages: Kept) -> Response:
    """Start a search with images, or with an item of the gallery."""
    arguments = _arguments(form)
    key = form.optional("item")
    if key is not None:
        (item,) = await pages.service.get([key])
        found = Search(item=item, embeddings=None, arguments=arguments, key=key)
    else:
        if not form.images:
            raise Problem(422, "there is no image to search with: drop one, or choose a file of at least one spectrum")
        uploads = Uploads(SearchRequest(items=[_fields(form)]), (form.images,))
        embeddings, pictures = await pages.service.read_items(uploads)
        found = Search(
            item=embeddings.items[0],
            embeddings=embeddings,
            arguments=arguments,
            uploads=form.images,
            pictures=pictures[0],
        )
    try:
        await pages.service.search(_query(found), **arguments)  # a mistake is reported before the page is left
    except InputError as error:
        if arguments["fmr"] is None:
            raise
        # The rate is chosen for a person by default; where it is too low for the calibration it is not used.
        found.arguments["fmr"], found.note = None, str(error)
        await pages.service.search(_query(found), **found.arguments)
    pages.searches.keep(found)
    return go(f"/search/{found.number}")


def _fields(form: Form) -> ItemFields:
    made = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    return item_fields(form, prefix="query_", key=form.optional("key") or f"query-{made}")


def _arguments(form: Form) -> dict[str, Any]:
    """The arguments of `Gallery.query`, as the person chose them."""
    by, fmr, threshold = form.text("by", "identity"), form.number("fmr"), form.number("threshold")
    top = form.whole("top", 10)
    if not 1 <= top <= MOST_SHOWN:
        raise Problem(422, f"the page shows 1 to {MOST_SHOWN} matches, given {top}")
    return {
        "top": top,
        "by": by,
        "reduce": form.text("reduce", "best") if by == "identity" else "best",
        "where": where_of(form),
        "exclude": form.text("exclude", "none"),
        "threshold": threshold,
        "fmr": None if threshold is not None else fmr,
    }


def where_of(form: Form) -> Filter | None:
    """The filter of a form; None: all items."""
    found = Filter(
        cameras=form.several("camera"),
        identities=form.several("identity"),
        presence=form.several("presence"),
        after=form.time("after"),
        before=form.time("before"),
    )
    return None if found.is_empty else found


def _query(search: Search) -> Any:
    return [search.key] if search.embeddings is None else search.embeddings


@router.get("/search/{number}")
async def result_page(request: Request, number: str, pages: Kept) -> Response:
    """The ranked matches of a search."""
    search, service, t = pages.searches.find(number), pages.service, language_of(request)
    await _forget_removed(pages, search)
    result, matches = await ranked(pages, search)
    count = await service.count(search.arguments["where"])
    calibrated = await pages.rates() is not None
    passing = [match.identity for match in result.matches if match.accepted]
    answer = next(iter(passing), None)
    accepted = {match.key: match.accepted for match in result.matches}
    shown = [
        match_view(
            t,
            match,
            rank=rank,
            accepted=accepted[match.key],
            threshold=search.arguments["threshold"],
            calibrated=calibrated,
            modalities=service.embedder.modalities,
            others=count,
            is_first=match.identity == answer,
        )
        for rank, match in enumerate(matches, start=1)
    ]
    query = await _query_view(pages, search)
    verdict, note = _verdict(t, search, shown)
    return show(
        request,
        "result.jinja",
        search=search,
        query=query,
        query_modalities=[name for name, address in query.pictures if address],
        matches=shown,
        verdict=verdict,
        verdict_note=note,
        conditions=_conditions(t, search),
        notes=answers.notes_on([search.item], search.arguments["exclude"]),
        calibrated=calibrated,
        can_explain=can_explain(service.embedder),
    )


async def ranked(pages: Pages, search: Search) -> tuple[Any, Sequence[MatchAnswer]]:
    """The result of a search now, and its matches without the query itself and those that were rejected."""
    arguments = dict(search.arguments)
    by_identity = search.by_identity
    arguments["top"] += len(search.hidden) + 1
    (result,) = await pages.service.search(_query(search), **arguments)
    (answer,) = (await pages.service.read(lambda: answers.search_answer(pages.service, [result]))).results
    kept = [
        match
        for match in answer.matches
        if match.key != search.key and (match.identity if by_identity else match.key) not in search.hidden
    ]
    return result, kept[: search.arguments["top"]]


async def views_of(pages: Pages, items: Sequence[Item]) -> list[ItemView]:
    """Items for a template."""
    service = pages.service
    return await service.read(
        lambda: [item_view(answers.item_answer(service, item), service.embedder.modalities) for item in items]
    )


async def _forget_removed(pages: Pages, search: Search) -> None:
    """A query that was added and removed again is a query as before."""
    key = search.key
    if search.embeddings is not None and key is not None and not await pages.service.count(Filter(keys=[key])):
        search.key = None


async def _query_view(pages: Pages, search: Search) -> ItemView:
    modalities = pages.service.embedder.modalities
    if search.key is not None:
        return (await views_of(pages, await pages.service.get([search.key])))[0]
    item = search.item
    return ItemView(
        key=item.key or "",
        identity=None,
        camera=item.camera,
        scene=item.scene,
        when=date_text(item.time),
        pictures=[
            (name, f"/search/{search.number}/images/{name}" if name in search.pictures else None) for name in modalities
        ],
        not_shown={},
        address=item_address(item.key or ""),
        identity_address="",
    )


def _verdict(t: Language, search: Search, matches: Sequence[Any]) -> tuple[str, str]:
    """Whether the query is known, and why."""
    if not matches:
        return t("verdict_empty"), t("verdict_empty_note")
    rate, distance = search.arguments["fmr"], search.arguments["threshold"]
    if rate is None and distance is None:
        return t("verdict_ranked"), t("not_decided", line=search.note) if search.note else t("verdict_ranked_note")
    words = rate_words(t, rate) if distance is None else t("threshold_distance", value=f"{distance:.3g}")
    first = next((match for match in matches if match.kind == "near"), None)
    if first is None and not all(match.kind for match in matches):
        return t("verdict_ranked"), t("verdict_open_note", threshold=words)
    if first is None:
        return t("verdict_unknown"), t("verdict_unknown_note", threshold=words)
    name = t("verdict_known_unnamed") if first.identity is None else t("verdict_known", identity=first.identity)
    several = len({match.identity for match in matches if match.kind == "near"})
    note = t("verdict_known_note", threshold=words)
    return name, note if several == 1 else f"{note} {t('verdict_several', count=several)}"


def _conditions(t: Language, search: Search) -> list[str]:
    """What was chosen in the form, for the page of the result."""
    given: Mapping[str, Any] = search.arguments
    said = [t("condition_top", count=given["top"])]
    if given["reduce"] == "mean":
        said.append(t("condition_reduce"))
    if given["exclude"] != "none":
        said.append(t("condition_exclude", rule=t(f"exclude_{given['exclude']}")))
    where = given["where"]
    if where is not None:
        parts = [", ".join(values) for values in (where.cameras, where.identities, where.presence) if values]
        parts += [date_text(where.after) + " –"] if where.after is not None else []
        parts += ["– " + date_text(where.before)] if where.before is not None else []
        said.append(t("condition_filter", text="; ".join(parts)))
    return said


@router.get("/search/{number}/images/{modality}")
async def query_image(number: str, modality: str, pages: Kept) -> Response:
    """A small picture of the query."""
    pictures = pages.searches.find(number).pictures
    if modality not in pictures:
        raise Problem(404, "the query has no such image")
    return Response(pictures[modality], media_type=MEDIA_TYPE)


@router.post("/search/{number}/accept")
async def accept(number: str, form: Sent, pages: Kept) -> Response:
    """The query shows the same object as a match."""
    found = pages.searches.find(number)
    action = await pages.reviewer.accept(found, form.text("match"), form.optional("identity"))
    pages.overviews.forget()
    return go(f"/search/{number}", done=action.number)


@router.post("/search/{number}/identity")
async def new_identity(number: str, form: Sent, pages: Kept) -> Response:
    """The query shows an object that the gallery does not have."""
    name = form.optional("identity")
    if name is None:
        raise Problem(422, "the new identity has no name: write one")
    action = await pages.reviewer.new_identity(pages.searches.find(number), name)
    pages.overviews.forget()
    return go(f"/search/{number}", done=action.number)


@router.post("/search/{number}/reject")
async def reject(number: str, form: Sent, pages: Kept) -> Response:
    """A match shows another object: it is not shown for this query any more."""
    found = pages.searches.find(number)
    match = form.text("match")
    if match and match not in found.hidden and len(found.hidden) < MOST_SHOWN:
        found.hidden.append(match)
    return go(f"/search/{number}", place="matches")


@router.post("/search/{number}/show")
async def show_again(number: str, form: Sent, pages: Kept) -> Response:
    """Take a rejection back."""
    found = pages.searches.find(number)
    found.hidden = [each for each in found.hidden if each != form.text("match")]
    return go(f"/search/{number}", place="matches")
