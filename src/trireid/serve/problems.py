"""Errors as problem details in JSON (RFC 9457): what was given, what is allowed, what to do; never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException

from trireid.errors import RunError, TrireidError, printable

_log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
_MOST_FAULTS = 20


class Problem(Exception):
    """An answer other than success.

    Args:
        status: of HTTP.
        detail: one line for a person.
        headers: of the response.
        further: members of the JSON object beside those of RFC 9457.
    """

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **further: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.further = further

    def response(self) -> JSONResponse:
        """The problem as a response."""
        content = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        return JSONResponse(
            {**content, "detail": printable(self.detail, limit=1000), **self.further},
            status_code=self.status,
            headers=self.headers,
            media_type=MEDIA_TYPE,
        )


class FaultDetails(BaseModel):
    """One fault of a request's content."""

    place: str
    fault: str


class ProblemDetails(BaseModel):
    """An error, by RFC 9457."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "the gallery has no item with the key 'gate-17'",
                }
            ]
        }
    )
    type: str
    title: str
    status: int
    detail: str
    faults: list[FaultDetails] | None = None


def invalid(error: ValidationError | Sequence[Any]) -> Problem:
    """422 with the place of each fault; the values themselves are not repeated."""
    faults = error.errors(include_url=False, include_input=False) if isinstance(error, ValidationError) else error
    listed = [
        {"place": printable(".".join(str(part) for part in each["loc"]) or "body"), "fault": printable(each["msg"])}
        for each in faults[:_MOST_FAULTS]
    ]
    first = f"{listed[0]['place']}: {listed[0]['fault']}" if listed else "it is not valid"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return Problem(422, f"the request is not as described in /docs: {first}{more}", faults=listed)


def add_handlers(app: FastAPI, answer: Callable[[Request, Problem], Response]) -> None:
    """Let every error of an app be answered, with problem details or as a page."""

    async def on_problem(request: Request, error: Exception) -> Response:
        return answer(request, as_problem(error))

    # `Exception` is what Starlette answers with before it passes the error on to the server's log.
    for kind in (Problem, TrireidError, HTTPException, Exception):
        app.add_exception_handler(kind, on_problem)
    from fastapi.exceptions import RequestValidationError

    app.add_exception_handler(RequestValidationError, on_problem)


def as_problem(error: Exception) -> Problem:
    """What to answer after an error."""
    from fastapi.exceptions import RequestValidationError

    match error:
        case Problem():
            return error
        case RunError():  # the gallery, or a folder of the service: no fault of who sent the request
            _log.error("%s", printable(str(error)))
            return Problem(503, str(error), headers={"Retry-After": "1"})
        case RequestValidationError():
            return invalid(error.errors())
        case TrireidError():
            return Problem(400, str(error))
        case HTTPException():
            return Problem(error.status_code, _plain(error), headers=error.headers)
    # The server closes the connection after an error that it did not expect; the client shall not use it again.
    return Problem(500, "the service made an error; its log says which", headers={"Connection": "close"})


def _plain(error: HTTPException) -> str:
    advice = {404: "there is nothing at this address; /docs lists all", 405: "this address does not take that method"}
    return advice.get(error.status_code, str(error.detail))
