"""Turns everything that can go wrong in a request into a problem document."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.problems import (
    FieldError,
    InternalError,
    Invalid,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    Problem,
    TooLarge,
    Unavailable,
)
from app.web.strict_json import escaped
from modelpress.complaints import plain, told_once
from modelpress.steps import STEPS


def install(app: FastAPI) -> None:
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(ClientDisconnect, _disconnect)
    for down in (OperationalError, InterfaceError, PoolTimeoutError):
        app.add_exception_handler(down, _database_down)


async def _http(request: Request, error: Exception) -> Response:
    if isinstance(error, Problem):
        return error.response()
    assert isinstance(error, HTTPException)  # noqa: S101 - by its registration; tells mypy
    known: dict[int, Problem] = {
        404: NotFound(f"There is no {request.url.path}; /docs shows what there is, /openapi.json is for machines."),
        405: MethodNotAllowed(f"{request.method} is not possible here.", headers=error.headers),
        413: TooLarge("The body is larger than this server accepts."),
        400: MalformedRequest("The request could not be read."),
    }
    return known.get(error.status_code, InternalError("The request could not be served.")).response()


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - by its registration; tells mypy
    details = told_once(error.errors())
    if any(detail["loc"][0] == "path" for detail in details):
        return NotFound(f"There is no {request.url.path}.").response()
    errors = [FieldError(pointer=_pointer(detail, error.body), detail=_sentence(detail)) for detail in details]
    return Invalid.at(*errors).response()


async def _disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the number is what nginx logs


async def _database_down(_request: Request, _error: Exception) -> Response:
    return Unavailable("The database cannot be reached.").response()


def _pointer(detail: ErrorDetails, body: Any) -> str:
    """The place in the body. pydantic's location also names the branches of unions, which are no part of a pointer."""
    source, *path = detail["loc"]
    if source != "body":
        return f"{source}:{'.'.join(map(str, path))}"
    pointer, here = "", body
    for depth, key in enumerate(path):
        held = here.keys() if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        if key in held:
            here = here[key]
        elif detail["type"] != "missing" or depth < len(path) - 1:
            continue
        pointer += f"/{escaped(key)}"
    return pointer + ("/step" if detail["type"].startswith("union_tag") else "")


def _sentence(detail: ErrorDetails) -> str:
    context: dict[str, Any] = detail.get("ctx", {})
    match detail["type"]:
        case "union_tag_invalid":
            return f"there is no step {context['tag']!r}; there are: {context['expected_tags'].replace(chr(39), '')}"
        case "union_tag_not_found":
            return 'a step is an object that names itself: {"step": "…"}'
        case "extra_forbidden":
            *_, owner, name = detail["loc"]
            if owner not in STEPS:
                return f"there is no option {name!r} here"
            options = ", ".join(option for option in STEPS[str(owner)].model_fields if option != "step")
            return f"{owner} has no option {name!r}; there are: {options}"
        case "missing":
            return "this is required"
    return plain(detail)
