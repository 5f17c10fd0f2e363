"""What all pages share: language, navigation, the token of their forms, cookies, and how errors are shown."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import Headers

from trireid.errors import printable
from trireid.serve.languages import LANGUAGE_COOKIE, NAMES, Language, choose_language
from trireid.serve.problems import Problem
from trireid.serve.security import FORM_COOKIE, HEADERS, Access, cookie_of, new_form_seed, set_cookie

if TYPE_CHECKING:
    from trireid.serve.pages import Pages

HERE = Path(__file__).parent
YEAR = 365 * 24 * 3600
LONGEST_ADDRESS = 2000


@cache
def environment() -> Environment:
    """The templates; every value is escaped."""
    return Environment(
        loader=PackageLoader("trireid", "serve/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def language_of(request: Request) -> Language:
    """The language of the person who sent a request."""
    headers = request.headers
    return choose_language(
        chosen=request.query_params.get("language", ""),
        cookie=cookie_of(headers, LANGUAGE_COOKIE),
        accepted=headers.get("accept-language", ""),
    )


def pages_of(request: Request) -> Pages:
    """What the pages of this app keep."""
    pages: Pages = request.app.state.pages
    return pages


def show(request: Request, template: str, *, status: int = 200, **content: Any) -> HTMLResponse:
    """A page.

    Args:
        request: that it answers.
        template: file name.
        status: of HTTP.
        content: what the template shows beside what all pages have.
    """
    access: Access = request.app.state.access
    language = language_of(request)
    is_outside = status != 200 or request.url.path == "/login"  # also shown to who has not given the token
    seed = cookie_of(request.headers, FORM_COOKIE)
    cookies = []
    secure = is_secure(request)
    if not seed:
        seed = new_form_seed()
        cookies.append(set_cookie(FORM_COOKIE, seed, secure=secure))
    if request.query_params.get("language", "") == language.code:
        cookies.append(set_cookie(LANGUAGE_COOKIE, language.code, secure=secure, seconds=YEAR))
    text = (
        environment()
        .get_template(template)
        .render(
            t=language,
            form_token=access.form_token(seed),
            can_leave=access.needs_token and not is_outside,
            here=_here(request),
            path=request.url.path,
            languages=[(code, name, _with(request, language=code)) for code, name in NAMES.items()],
            done=None if is_outside else pages_of(request).done(request.query_params.get("done", "")),
            **content,
        )
    )
    response = HTMLResponse(text, status_code=status)
    response.headers.update({"Content-Language": language.code, "Vary": "Accept-Language, Cookie"})
    for cookie in cookies:
        response.headers.append("Set-Cookie", cookie)
    return response


def is_secure(request: Request) -> bool:
    """Whether the browser reaches the service by TLS, also through a proxy that says so: cookies then need it."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "").startswith("https")


def _here(request: Request) -> str:
    """This page's own address, to come back to."""
    return _with(request, language=None, done=None)


def _with(request: Request, **changed: str | None) -> str:
    """This page's address with some parameters changed; None: left out."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in changed]
    kept += [(name, value) for name, value in changed.items() if value is not None]
    # The path is the sender's: //other.example would lead away.
    return local_address(quote(request.url.path)) + (f"?{urlencode(kept)}" if kept else "")


def local_address(given: str, *, default: str = "/") -> str:
    """An address of this service that a form or link leads back to; anything else becomes the default.

    Example:
        >>> [local_address(each) for each in ("/gallery?camera=2", "https://other.example/", "//other.example")]
        ['/gallery?camera=2', '/', '/']
    """
    plain = given.isascii() and given.isprintable() and "\\" not in given and len(given) <= LONGEST_ADDRESS
    return given if plain and given.startswith("/") and not given.startswith("//") else default


def go(address: str, *, done: str = "", place: str = "") -> Response:
    """Lead to a page after a form, so that loading it again does not send the form again.

    Args:
        address: of this service.
        done: number of the action that the page reports, with a way to undo it.
        place: of the page, that it is shown from.
    """
    parts = urlsplit(local_address(address))
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name != "done"]
    query = urlencode([*kept, ("done", done)] if done else kept)
    fragment = f"#{place}" if place else ""
    return RedirectResponse(parts.path + (f"?{query}" if query else "") + fragment, status_code=303)


def wants_page(path: str, headers: Mapping[str, str]) -> bool:
    """Whether a person with a browser asked, who is shown errors as a page and not as JSON."""
    return not path.startswith(("/v1/", "/static/", "/openapi")) and "text/html" in headers.get("accept", "")


def answer_problem(request: Request, problem: Problem) -> Response:
    """An error: as problem details, for a person as a page."""
    is_page = wants_page(request.url.path, request.headers)
    response = _problem_page(request, problem) if is_page else problem.response()
    response.headers.update(HEADERS)  # an unexpected error is answered outside of the gate, which adds them elsewhere
    return response


def _problem_page(request: Request, problem: Problem) -> Response:
    """The same line as in the API, and the way back."""
    if problem.status == 401 and not request.url.path.startswith("/login"):
        response: Response = RedirectResponse(f"/login?{urlencode({'back': _here(request)})}", status_code=303)
        return response
    came_from = urlsplit(request.headers.get("referer", ""))
    back = local_address(f"{came_from.path}?{came_from.query}".rstrip("?")) if came_from.path else "/"
    page = show(
        request,
        "problem.jinja",
        status=problem.status,
        line=printable(problem.detail, limit=1000),
        number=problem.status,
        back=back,
    )
    page.headers.update(Headers(problem.headers))
    return page
