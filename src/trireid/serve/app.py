"""The app: API, pages and static files of one model and one gallery."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from trireid.errors import RunError
from trireid.serve import api, schemas
from trireid.serve.frame import answer_problem
from trireid.serve.gate import Gate
from trireid.serve.limits import Limits
from trireid.serve.media import Media
from trireid.serve.observing import Observer
from trireid.serve.pages import add_pages
from trireid.serve.problems import Problem, add_handlers
from trireid.serve.security import LOCAL_NAMES, Access
from trireid.serve.service import Service

HERE = Path(__file__).parent
_ENCODED = "/v1/items/"
"""Addresses below it hold keys, each one segment: they are matched as they were sent, before they are decoded."""


def create_app(
    embedder: Any,
    gallery: Any,
    *,
    media: Path,
    root: Path | None = None,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Iterable[str] | None = LOCAL_NAMES,
    run: Path | None = None,
) -> FastAPI:
    """An ASGI app that serves one model and one gallery.

    Args:
        embedder: `trireid.Embedder`, or one of the same interface.
        gallery: `trireid.Gallery` of the same model; it is closed when the app ends.
        media: folder for the thumbnails of uploaded items.
        root: folder below which the images of items may be read to show them; None: none are.
        limits: how much is taken; None: the defaults.
        token: that every request needs; None: none, for a service that only this machine reaches.
        hosts: names by which the service may be called; None: any.
        run: run folder whose report the pages link to.
    """
    limits, observer = limits or Limits(), Observer()
    access = Access(token, hosts)
    service = Service(
        embedder,
        gallery,
        limits=limits,
        media=Media(media, root=root, max_pixels=limits.image_pixels),
        observer=observer,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="trireid",
        version=version("trireid"),
        description="Search for objects seen in up to three spectra: RGB, near-infrared and thermal.",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would lead to http:// behind a proxy with TLS, and the token goes along
    )
    app.state.service, app.state.access, app.state.run = service, access, run
    add_handlers(app, answer_problem)
    app.include_router(api.router)
    _add_operations(app)
    add_pages(app, folder=media, run=run)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.add_middleware(Gate, limits=limits, access=access, observer=observer, refuse=answer_problem)
    app.add_middleware(_EncodedKeys)
    return app


def _add_operations(app: FastAPI) -> None:
    """Health, metrics, the description of the API and the page that shows it."""
    service: Service = app.state.service

    @app.get("/health", tags=["operation"])
    @app.get("/health/live", tags=["operation"])
    async def live() -> schemas.HealthAnswer:
        """The process answers."""
        return schemas.HealthAnswer(status="live")

    @app.get("/health/ready", tags=["operation"], responses={503: api.PROBLEMS[503]})
    async def ready() -> schemas.HealthAnswer:
        """The gallery answers too; 503 where it does not."""
        try:
            await service.count()
        except (OSError, RuntimeError, RunError) as error:
            raise Problem(503, "the gallery does not answer; the log of the service says why") from error
        return schemas.HealthAnswer(status="ready")

    @app.get(
        "/metrics",
        tags=["operation"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, 401: api.PROBLEMS[401]},
    )
    async def metrics() -> Response:
        """What the service counts and measures, for Prometheus."""
        try:
            items = float(await service.count())
        except RunError:  # all else is needed most where the gallery does not answer
            items = float("nan")
        service.observer.items.set(items)
        return Response(service.observer.text(), media_type=service.observer.content_type)

    @app.get("/openapi.json", include_in_schema=False)
    async def description() -> dict[str, Any]:
        return describe(app)

    @app.get("/docs", include_in_schema=False)
    async def documentation(request: Request) -> FileResponse:
        return FileResponse(HERE / "static" / "swagger" / "docs.html", media_type="text/html; charset=utf-8")


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, with the bodies that are read as JSON or as a form."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        parts = schema["components"]["schemas"]
        for kind in (schemas.EmbedRequest, schemas.SearchRequest, schemas.AddRequest):
            own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            parts.update(own.pop("$defs", {}))
            parts[kind.__name__] = own
        problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
        for operation in (each for operations in schema["paths"].values() for each in operations.values()):
            for code in operation["responses"]:
                if code >= "400":  # FastAPI states the schema of an error as application/json
                    operation["responses"][code]["content"] = problem
        if app.state.access.needs_token:
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
        app.openapi_schema = schema
    return app.openapi_schema


class _EncodedKeys:
    """Gives the app the addresses of items as they were sent, so that `/` within a key is not taken for a separator."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_ENCODED):
            scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await self.app(scope, receive, send)
