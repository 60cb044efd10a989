"""JSON bodies that can be stored: bounded, UTF-8, no NaN, and no characters that PostgreSQL refuses."""

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.problems import FieldError, Invalid, MalformedRequest, TooLarge, UnsupportedFormat

MAX_BYTES = 1 << 20


class StrictRoute(APIRoute):
    """A route whose JSON body is read by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if self.body_field is not None and not _is_json(request.headers.get("content-type", "")):
                raise UnsupportedFormat("The body must be JSON: send `Content-Type: application/json`.")
            return await handler(StrictRequest(request.scope, request.receive))

        return handle


class StrictRequest(Request):
    _bytes: bytes | None = None

    async def body(self) -> bytes:
        """Raises TooLarge as soon as more than `MAX_BYTES` have come."""
        if self._bytes is None:
            read = bytearray()
            async for chunk in self.stream():
                read += chunk
                if len(read) > MAX_BYTES:
                    raise TooLarge(f"A JSON body has at most {MAX_BYTES} bytes.")
            self._bytes = bytes(read)
        return self._bytes

    async def json(self) -> Any:
        try:
            parsed = json.loads(await self.body(), parse_constant=_finite, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise MalformedRequest(f"The body is not JSON: {error}") from None
        _check_strings(parsed, "")
        return parsed


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def escaped(key: object) -> str:
    """One token of a JSON pointer (RFC 6901)."""
    return str(key).replace("~", "~0").replace("/", "~1")


def storable(text: str) -> str:
    """Raises ValueError for characters that PostgreSQL's text cannot hold."""
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("NUL characters and lone surrogates cannot be stored")
    return text


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:32]} is not a finite number")
    return value


def _check_strings(value: Any, pointer: str) -> None:
    match value:
        case str():
            try:
                storable(value)
            except ValueError as error:
                raise Invalid.at(FieldError(pointer=pointer, detail=str(error))) from None
        case dict():
            for key, item in value.items():
                _check_strings(key, pointer)
                _check_strings(item, f"{pointer}/{escaped(key)}")
        case list():
            for index, item in enumerate(value):
                _check_strings(item, f"{pointer}/{index}")
