"""Every error that the API gives (RFC 9457): classes that have a stable `code` and describe themselves in OpenAPI."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Self

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"


class FieldError(BaseModel):
    """What is wrong with one field, and what to do."""

    pointer: str = Field(
        description="JSON pointer into the body, or `query:…`, `header:…`", examples=["/recipe/0/sparsity"]
    )
    detail: str


class ProblemDocument(BaseModel):
    """An error, as RFC 9457 has it. `code` is stable; `detail` is for people."""

    type: str = Field(examples=["urn:modelpress:problem:not_found"])
    title: str
    status: int
    code: str
    detail: str
    errors: list[FieldError] = Field(default_factory=list)


class Problem(HTTPException):
    """Base of all; the docstring of each class is its description in OpenAPI."""

    status: ClassVar[HTTPStatus]
    code: ClassVar[str]

    def __init__(
        self, detail: str, *, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(self.status, detail, headers)
        self.errors = list(errors)

    @classmethod
    def at(cls, *errors: FieldError) -> Self:
        """A problem of one field, or of several; the first few are its detail."""
        return cls("; ".join(f"{error.pointer or 'body'}: {error.detail}" for error in errors[:3]), errors=errors)

    def response(self) -> JSONResponse:
        document = ProblemDocument(
            type=problem_type(self.code),
            title=self.status.phrase,
            status=self.status,
            code=self.code,
            detail=self.detail,
            errors=self.errors,
        )
        content = document.model_dump(exclude=set() if self.errors else {"errors"})
        return JSONResponse(content, self.status, self.headers, media_type=MEDIA_TYPE)


def problem_type(code: str) -> str:
    return f"urn:modelpress:problem:{code}"


class MalformedRequest(Problem):
    """The request could not be read: broken JSON, or a header that does not follow its grammar."""

    status, code = HTTPStatus.BAD_REQUEST, "malformed_request"


class DigestMismatch(Problem):
    """The bytes that arrived are not those that `Repr-Digest` announced; nothing was kept."""

    status, code = HTTPStatus.BAD_REQUEST, "digest_mismatch"


class Unauthenticated(Problem):
    """No API key was sent, or one that is unknown or revoked."""

    status, code = HTTPStatus.UNAUTHORIZED, "unauthenticated"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="modelpress"'})


class NotFound(Problem):
    """There is no such thing, or it belongs to another tenant."""

    status, code = HTTPStatus.NOT_FOUND, "not_found"


class MethodNotAllowed(Problem):
    """The path exists, but not with this verb; `Allow` lists those it has."""

    status, code = HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed"


class NotReady(Problem):
    """A model or dataset is still being read; try again after `Retry-After` seconds."""

    status, code = HTTPStatus.CONFLICT, "not_ready"

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail, errors=errors, headers={"Retry-After": "2"})


class Rejected(Problem):
    """A model or dataset could not be read, so no job can use it; the reason is given."""

    status, code = HTTPStatus.CONFLICT, "rejected"


class InUse(Problem):
    """It cannot be removed: something else still refers to it."""

    status, code = HTTPStatus.CONFLICT, "in_use"


class NotRetryable(Problem):
    """Only a job that failed or was canceled can be tried again."""

    status, code = HTTPStatus.CONFLICT, "not_retryable"


class RequestInFlight(Problem):
    """Another request with this `Idempotency-Key` has not ended yet."""

    status, code = HTTPStatus.CONFLICT, "request_in_flight"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class TooLarge(Problem):
    """The body is larger than this server accepts."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large"


class UnsupportedFormat(Problem):
    """A body of this kind is not read here; what is accepted is listed."""

    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_format"


class RangeNotSatisfiable(Problem):
    """The requested range lies outside of the file."""

    status, code = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "range_not_satisfiable"


class Invalid(Problem):
    """The request was understood, but cannot be done; `errors` says which field and why."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid"


class EmptyBody(Problem):
    """The file has no bytes."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "empty_body"


class IdempotencyKeyReused(Problem):
    """This `Idempotency-Key` was sent before with another body."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency_key_reused"


class InternalError(Problem):
    """Something went wrong on the server; the log has it under the request id."""

    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error"


class Unavailable(Problem):
    """A part of the service that this request needs is down; try again."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "5"})


class StorageFull(Problem):
    """There is no room for the file; nothing of it was kept."""

    status, code = HTTPStatus.INSUFFICIENT_STORAGE, "storage_full"


def described(*problems: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint: these problems, and those that every request can meet."""
    everything: tuple[type[Problem], ...] = (*problems, InternalError, Unavailable)
    responses: dict[int | str, dict[str, Any]] = {}
    for status in sorted({problem.status for problem in everything}):
        group = [problem for problem in everything if problem.status == status]
        responses[int(status)] = {
            "description": "\n\n".join(f"`{problem.code}`: {problem.__doc__}" for problem in group),
            "content": {
                MEDIA_TYPE: {
                    "schema": {
                        "allOf": [{"$ref": "#/components/schemas/ProblemDocument"}],
                        "properties": {"code": {"enum": [problem.code for problem in group]}},
                    }
                }
            },
        }
    return responses
