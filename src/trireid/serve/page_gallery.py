"""Pages of the gallery itself: browse it, change it, add to it, take changes back; the report, and the login."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date, timedelta
from importlib import resources
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse

from trireid.gallery.filters import Filter
from trireid.serve.forms import Form, date_text, item_fields
from trireid.serve.frame import go, is_secure, local_address, show
from trireid.serve.journal import MOST
from trireid.serve.overview import Group
from trireid.serve.pages import Kept, Pages, Sent, views_of, where_of
from trireid.serve.problems import Problem
from trireid.serve.schemas import AddRequest
from trireid.serve.security import SESSION_COOKIE, Access, set_cookie
from trireid.serve.uploads import Uploads
from trireid.serve.views import metadata_rows
from trireid.serve.wording import default_rate

ITEMS_SHOWN = 48
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The report is one file that brings its style along."""
router = APIRouter(include_in_schema=False)


def _address(**parameters: Any) -> str:
    return f"/gallery?{urlencode({name: value for name, value in parameters.items() if value}, doseq=True)}"


@router.get("/gallery")
async def gallery_page(request: Request, pages: Kept) -> Response:
    """The items of the gallery, or its identities, cameras or days."""
    given = Form({name: request.query_params.getlist(name) for name in request.query_params}, {})
    view = given.text("view", "items")
    content: dict[str, Any] = {
        "view": view,
        "known": await pages.overviews.get(),
        "whole": await pages.service.count(),
        "given": {
            "cameras": given.several("camera") or (),
            **{name: given.text(name) for name in ("identity", "presence", "after", "before")},
        },
        "is_filtered": False,
    }
    if view == "items":
        content |= await _listed(pages, given)
    elif view == "unlabelled":
        content |= await _unlabelled(pages, given)
    elif view in ("identities", "cameras", "days"):
        content |= await _grouped(pages, view, given)
    else:
        raise Problem(404, "the gallery is shown by items, identities, cameras, days, or unlabelled")
    return show(request, "gallery.jinja", **content)


async def _listed(pages: Pages, given: Form) -> dict[str, Any]:
    """A page of items that fulfil the filter."""
    where, start = where_of(given), given.optional("from")
    items = await pages.service.page(where, after=start, limit=ITEMS_SHOWN)
    filters = {name: given.several(name) for name in ("camera", "identity", "presence", "after", "before")}
    following = _address(**filters, **{"from": items[-1].key}) if len(items) == ITEMS_SHOWN else ""
    return {
        "items": await views_of(pages, items),
        "found": await pages.service.count(where),
        "is_filtered": where is not None,
        "first_page": _address(**filters) if start else "",
        "next_page": following,
    }


async def _unlabelled(pages: Pages, given: Form) -> dict[str, Any]:
    """A page of items without an identity, of those that were counted."""
    keys, start = (await pages.overviews.get()).unlabelled, max(given.whole("start", 0), 0)
    some = keys[start : start + ITEMS_SHOWN]
    items = await pages.service.page(Filter(keys=some), after=None, limit=ITEMS_SHOWN) if some else []
    return {"items": await views_of(pages, items), "found": len(keys), **_around("unlabelled", start, len(keys))}


async def _grouped(pages: Pages, view: str, given: Form) -> dict[str, Any]:
    """A page of identities, cameras or days."""
    groups, start = (await pages.overviews.get()).groups[view], max(given.whole("start", 0), 0)
    some = groups[start : start + ITEMS_SHOWN]
    keys = [group.example for group in some]
    examples = await pages.service.page(Filter(keys=keys), after=None, limit=ITEMS_SHOWN) if keys else []
    views = {each.key: each for each in await views_of(pages, examples)}
    shown = [
        {
            "name": group.name,
            "count": group.count,
            "pictures": views[group.example].pictures if group.example in views else (),
            "not_shown": views[group.example].not_shown if group.example in views else {},
            "address": _group_address(view, group),
        }
        for group in some
    ]
    return {"groups": shown, **_around(view, start, len(groups))}


def _group_address(view: str, group: Group) -> str:
    if view == "days":
        day = date.fromisoformat(group.name)
        return _address(after=f"{day}T00:00", before=f"{day + timedelta(days=1)}T00:00")
    return _address(**{{"identities": "identity", "cameras": "camera"}[view]: group.name})


def _around(view: str, start: int, count: int) -> dict[str, str]:
    following = start + ITEMS_SHOWN
    return {
        "first_page": _address(view=view) if start else "",
        "next_page": _address(view=view, start=following) if following < count else "",
    }


@router.get("/item")
async def item_page(request: Request, pages: Kept, key: str = "") -> Response:
    """One item with all that is known about it."""
    (item,) = await pages.service.get([key])
    (shown,) = await views_of(pages, [item])
    return show(
        request,
        "item.jinja",
        item=shown,
        metadata=metadata_rows(item.metadata),
        default_rate=default_rate(await pages.rates() or ()),
    )


@router.post("/item/label")
async def label(form: Sent, pages: Kept) -> Response:
    """Change which object an item shows."""
    action = await pages.reviewer.label(form.text("key"), form.optional("identity"))
    pages.overviews.forget()
    return go(form.text("back"), done=action.number)


@router.post("/item/remove")
async def remove(form: Sent, pages: Kept) -> Response:
    """Remove an item."""
    action = await pages.reviewer.remove(form.text("key"))
    pages.overviews.forget()
    return go("/gallery", done=action.number)


@router.get("/add")
async def add_page(request: Request, pages: Kept) -> Response:
    """Forms that add items."""
    return show(
        request,
        "add.jinja",
        modalities=pages.service.embedder.modalities,
        known=await pages.overviews.get(),
        most_bytes=pages.service.limits.body_bytes,
    )


@router.post("/add")
async def add(form: Sent, pages: Kept) -> Response:
    """Add one item."""
    key = form.optional("key")
    if key is None or not form.images:
        raise Problem(422, "an item needs a key and an image of at least one spectrum")
    fields = item_fields(form, key=key)
    embeddings, pictures = await pages.service.read_items(Uploads(AddRequest(items=[fields]), (form.images,)))
    action = await pages.reviewer.add(embeddings, pictures[0])
    pages.overviews.forget()
    return go(f"/item?{urlencode({'key': key})}", done=action.number)


@router.get("/changes")
async def changes_page(request: Request, pages: Kept) -> Response:
    """What was changed on the pages."""
    actions = [{**asdict(action), "when": date_text(action.time)} for action in pages.journal.last()]
    return show(request, "changes.jinja", actions=actions, most=MOST)


@router.post("/changes/{number}/undo")
async def undo(number: str, form: Sent, pages: Kept) -> Response:
    """Take a change back."""
    action = await pages.reviewer.undo(number)
    pages.overviews.forget()
    return go(form.text("back") or "/changes", done=action.number)


@router.get("/report")
async def report(request: Request, pages: Kept) -> Response:
    """The report of the run, where there is one."""
    if pages.report is None:
        return show(request, "report.jinja")
    return FileResponse(
        pages.report, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": REPORT_POLICY}
    )


@router.get("/static/house.css")
async def house_style() -> Response:
    """The style that reports have too."""
    style = resources.files("trireid").joinpath("report", "page.css").read_text(encoding="utf-8")
    return Response(style, media_type="text/css; charset=utf-8")


@router.get("/login")
async def login_page(request: Request) -> HTMLResponse:
    """Where a person gives the token."""
    return show(request, "login.jinja", wrong=False, back=local_address(request.query_params.get("back", "/")))


@router.post("/login")
async def login(request: Request, form: Sent) -> Response:
    """Remember a browser that has the token."""
    access: Access = request.app.state.access
    back = local_address(form.text("back"))
    if not access.is_token(form.text("token")):
        return show(request, "login.jinja", status=403, wrong=True, back=back)
    response = go(back)
    response.headers.append("Set-Cookie", set_cookie(SESSION_COOKIE, access.new_session(), secure=is_secure(request)))
    return response


@router.post("/logout")
async def logout(request: Request, form: Sent) -> Response:
    """Forget a browser."""
    response = go("/login")
    response.headers.append("Set-Cookie", set_cookie(SESSION_COOKIE, "", secure=is_secure(request), seconds=0))
    return response
