"""How OpenAPI describes bodies that are files."""

from typing import Any

from app.problems import (
    DigestMismatch,
    EmptyBody,
    Invalid,
    MalformedRequest,
    StorageFull,
    TooLarge,
    Unauthenticated,
    UnsupportedFormat,
    described,
)

FILE = {"schema": {"type": "string", "format": "binary"}}

FILE_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/octet-stream": FILE}},
    "parameters": [
        {
            "name": "Repr-Digest",
            "in": "header",
            "required": False,
            "description": "`sha-256=:base64:` (RFC 9530); the upload is refused when the bytes differ",
            "schema": {"type": "string"},
        }
    ],
}

_headers = {
    "ETag": {"schema": {"type": "string"}, "description": "strong: the SHA-256"},
    "Repr-Digest": {"schema": {"type": "string"}, "description": "SHA-256 of the whole file (RFC 9530)"},
}
FILE_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "the file", "content": {"application/octet-stream": FILE}, "headers": _headers},
    206: {"description": "the range of it", "content": {"application/octet-stream": FILE}, "headers": _headers},
    304: {"description": "the file is the one that `If-None-Match` names"},
}

OF_UPLOADS = (
    Unauthenticated,
    Invalid,
    EmptyBody,
    TooLarge,
    UnsupportedFormat,
    DigestMismatch,
    MalformedRequest,
    StorageFull,
)
UPLOAD_PROBLEMS = described(*OF_UPLOADS)
