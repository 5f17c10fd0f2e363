"""The routes under /v1: each reads a request, calls the service and writes its answer."""

from __future__ import annotations

import base64
import binascii
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel

from trireid.embedding.embeddings import Embeddings
from trireid.names import ModalityName
from trireid.serve import answers
from trireid.serve.media import MEDIA_TYPE
from trireid.serve.problems import Problem, ProblemDetails
from trireid.serve.schemas import (
    AddAnswer,
    AddRequest,
    CalibrationAnswer,
    CountAnswer,
    EmbedAnswer,
    EmbedRequest,
    FilterFields,
    GalleryAnswer,
    ItemAnswer,
    LabelRequest,
    ModelAnswer,
    OneLabel,
    PageAnswer,
    SearchAnswer,
    SearchRequest,
    WithItems,
)
from trireid.serve.service import Service
from trireid.serve.uploads import Uploads, read_uploads

Fields = TypeVar("Fields", bound=WithItems)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": ProblemDetails, "description": text}
    for code, text in {
        400: "the request cannot be read, or the gallery or the model does not take it",
        401: "the service needs its token",
        403: "a page of another site sent the request",
        404: "there is no such item",
        408: "the body did not arrive in time",
        413: "too many bytes, pixels, items or values",
        415: "the body is neither JSON nor a form",
        422: "a field is missing, unknown or of another type",
        429: "too many requests at once: see Retry-After",
        500: "the service made an error, which is in its log",
        503: "the gallery does not answer: see Retry-After",
    }.items()
}
router = APIRouter(prefix="/v1", responses=PROBLEMS)


def the_service(request: Request) -> Service:
    """The service of the app."""
    service: Service = request.app.state.service
    return service


Running = Annotated[Service, Depends(the_service)]


def key_in_path(key: Annotated[str, Path(description="of an item, percent-encoded")]) -> str:
    """The key of an address, which the app is given still encoded: `/` within a key is `%2F`.

    Raises:
        Problem: it is not UTF-8.
    """
    try:
        return unquote(key, errors="strict")
    except UnicodeDecodeError as error:
        raise Problem(400, "the key in the address is not percent-encoded UTF-8") from error


Key = Annotated[str, Depends(key_in_path)]


def where_of(
    camera: Annotated[list[str] | None, Query(description="one of these")] = None,
    not_camera: Annotated[list[str] | None, Query(description="none of these")] = None,
    scene: Annotated[list[str] | None, Query(description="one of these")] = None,
    identity: Annotated[list[str] | None, Query(description="one of these")] = None,
    key: Annotated[list[str] | None, Query(description="one of these")] = None,
    presence: Annotated[list[str] | None, Query(description="exactly these modalities, such as rgb,nir")] = None,
    after: Annotated[float | None, Query(allow_inf_nan=False, description="from this time on, in seconds")] = None,
    before: Annotated[float | None, Query(allow_inf_nan=False, description="before this time, in seconds")] = None,
) -> FilterFields:
    """A filter from the query of an address."""
    return FilterFields(
        cameras=camera,
        not_cameras=not_camera,
        scenes=scene,
        identities=identity,
        keys=key,
        presence=presence,
        after=after,
        before=before,
    )


Where = Annotated[FilterFields, Depends(where_of)]


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """The description of a body that is read here, in JSON or as a form."""
    first = kind.model_json_schema()["examples"][0]
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    files = {name: {"type": "string", "format": "binary"} for name in ("rgb", "nir", "tir")}
    form = {
        "type": "object",
        "description": "Images as files: rgb, nir and tir, of several items 0.rgb, 1.rgb, ...; all else in `request`.",
        "properties": {**files, "request": {"type": "string", "contentMediaType": "application/json"}},
    }
    content = {"application/json": {"schema": schema, "example": first}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


async def _uploads(request: Request, kind: type[Fields]) -> Uploads[Fields]:
    service = the_service(request)
    content_type = request.headers.get("content-type", "")
    return await service.decode(partial(read_uploads, await request.body(), content_type, kind, limits=service.limits))


@router.post("/embed", response_model=EmbedAnswer, openapi_extra=_body(EmbedRequest), tags=["model"])
async def embed(request: Request, service: Running) -> Response:
    """The features of images of any subset of modalities."""
    uploads = await _uploads(request, EmbedRequest)
    embeddings = await service.embed(uploads)
    answer = answers.embed_answer(embeddings, uploads.fields.encoding, service.embedder.modalities)
    # Thousands of numbers: written straight to JSON, without a second check of each.
    return Response(answer.model_dump_json(), media_type="application/json")


@router.post("/search", openapi_extra=_body(SearchRequest), tags=["search"])
async def search(request: Request, service: Running) -> SearchAnswer:
    """The nearest items or identities of images, or of items of the gallery."""
    uploads = await _uploads(request, SearchRequest)
    fields = uploads.fields
    if bool(fields.keys) == bool(uploads.images):
        raise Problem(422, "give either items with images, or keys of items of the gallery")
    if fields.top > service.limits.top or len(fields.keys) > service.limits.items:
        raise Problem(
            413, f"at most {service.limits.top} matches (top) and {service.limits.items} keys are taken at once"
        )
    queries: Embeddings | list[str] = list(fields.keys) if fields.keys else await service.embed(uploads)
    items = await service.get(queries) if isinstance(queries, list) else queries.items
    results = await service.search(
        queries,
        top=fields.top,
        by=fields.by,
        reduce=fields.reduce,
        where=answers.filter_of(fields.where),
        exclude=fields.exclude,
        threshold=fields.threshold,
        fmr=fields.fmr,
    )
    notes = answers.notes_on(items, fields.exclude) + answers.notes_on_rate(results, fields.fmr)
    return await service.read(partial(answers.search_answer, service, results, notes))


@router.post("/items", openapi_extra=_body(AddRequest), tags=["items"])
async def add(request: Request, service: Running) -> AddAnswer:
    """Add items by their images; adding a key again replaces its item, so a request can be repeated safely."""
    uploads = await _uploads(request, AddRequest)
    keys = [item.key for item in uploads.fields.items]
    for number, (key, item) in enumerate(zip(keys, uploads.fields.items, strict=True)):
        if key is None:
            raise Problem(422, f"items.{number}.key: it is missing; each item needs a key of its own")
        answers.check_metadata(number, item.metadata, service.limits.metadata_bytes)
    done = await service.add(uploads)
    return AddAnswer(added=done.added, replaced=done.replaced, keys=[key for key in keys if key is not None])


@router.get("/items", tags=["items"])
async def list_items(
    service: Running,
    where: Where,
    limit: Annotated[int, Query(ge=1, description="items of the page")] = 100,
    cursor: Annotated[str | None, Query(description="`next` of the page before")] = None,
) -> PageAnswer:
    """Items in the order of their keys, by pages."""
    limit = min(limit, service.limits.page)
    after = None if cursor is None else _key_of(cursor)
    items = await service.page(answers.filter_of(where), after=after, limit=limit)
    shown = await service.read(lambda: [answers.item_answer(service, item) for item in items])
    return PageAnswer(items=shown, next=_cursor_of(shown[-1].key) if len(shown) == limit else None)


@router.patch("/items", tags=["items"])
async def label(service: Running, fields: LabelRequest) -> CountAnswer:
    """State which object some items are, or with null that it is not known any more."""
    return CountAnswer(changed=await service.label(fields.keys, fields.identity))


@router.delete("/items", tags=["items"])
async def remove(
    service: Running,
    where: Where,
    all: Annotated[bool, Query(description="needed to remove all items, without any condition")] = False,
) -> CountAnswer:
    """Remove all items that fulfil the conditions."""
    if where == FilterFields() and not all:
        raise Problem(422, "no condition is given, which would remove every item; add all=true if that is meant")
    return CountAnswer(changed=await service.remove(answers.filter_of(where)))


@router.get("/items/{key}", tags=["items"])
async def get_item(service: Running, key: Key) -> ItemAnswer:
    """One item. A key of `.` or `..` alone is no part of an address: use GET /v1/items?key=..."""
    (item,) = await service.get([key])
    return answers.item_answer(service, item)


@router.patch("/items/{key}", tags=["items"])
async def label_item(service: Running, key: Key, fields: OneLabel) -> CountAnswer:
    """State which object an item is."""
    return CountAnswer(changed=await service.label([key], fields.identity))


@router.delete("/items/{key}", tags=["items"])
async def remove_item(service: Running, key: Key) -> CountAnswer:
    """Remove an item."""
    await service.get([key])
    return CountAnswer(changed=await service.remove(answers.filter_of(FilterFields(keys=[key]))))


@router.get(
    "/items/{key}/images/{modality}",
    tags=["items"],
    response_class=Response,
    responses={200: {"content": {MEDIA_TYPE: {}}, "description": "a small picture"}},
)
async def image(
    service: Running, key: Key, modality: Annotated[ModalityName, Path(description="rgb, nir or tir")]
) -> Response:
    """A small picture of an item in one modality."""
    return Response(await service.picture(key, modality), media_type=MEDIA_TYPE)


@router.get("/model", tags=["model"])
async def model(service: Running) -> ModelAnswer:
    """What the features are made by."""
    return answers.model_answer(service.embedder.model, service.embedder.modalities)


@router.get("/gallery", tags=["search"])
async def gallery(service: Running) -> GalleryAnswer:
    """What is searched."""
    return await service.read(lambda: GalleryAnswer(about=answers.plain(service.gallery.info())))


@router.get("/calibration", tags=["search"])
async def calibration(service: Running) -> CalibrationAnswer:
    """The error rates that thresholds and results are read from."""
    return await service.read(lambda: answers.calibration_answer(service.gallery.calibration))


def _cursor_of(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def _key_of(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise Problem(422, "cursor: it is not `next` of a page of this list") from error
