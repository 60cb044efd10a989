"""Sends a stored file: strong ETag, one Range, conditional requests; a piece of at most one MiB at a time."""

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from urllib.parse import quote
from uuid import UUID

from anyio import CancelScope, to_thread
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.db.tables import Blob
from app.problems import NotFound, RangeNotSatisfiable
from app.storage.base import BlobStore

MEDIA_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class StoredFile:
    blob_id: UUID
    sha256: bytes
    size: int
    filename: str

    @property
    def etag(self) -> str:
        return f'"{self.sha256.hex()}"'


def stored_file(blob: Blob, filename: str) -> StoredFile:
    if blob.sha256 is None or blob.size is None:
        raise ValueError(f"blob {blob.id} is not stored yet")
    return StoredFile(blob.id, blob.sha256, blob.size, filename)


async def file_response(request: Request, store: BlobStore, file: StoredFile) -> Response:
    """Raises RangeNotSatisfiable, or NotFound where the bytes have gone."""
    headers = {
        "ETag": file.etag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{b64encode(file.sha256).decode()}:",
        "Cache-Control": "private, no-cache, no-transform",
    }
    if _names(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = _attachment(file.filename)
    headers["X-Content-Type-Options"] = "nosniff"
    wanted = _requested_range(request, file)
    start, stop = wanted or (0, file.size)
    status = 206 if wanted else 200
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    headers["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=MEDIA_TYPE)
    try:
        pieces = await to_thread.run_sync(store.read, file.blob_id, start, stop)
        first = await to_thread.run_sync(next, pieces, b"")
    except KeyError:
        raise NotFound("The bytes of this file are gone.") from None
    return PiecesResponse(first, pieces, status, headers)


class PiecesResponse(StreamingResponse):
    """Pulls each piece in a thread, and closes the source however the sending ends."""

    def __init__(self, first: bytes, pieces: Iterator[bytes], status: int, headers: dict[str, str]) -> None:
        super().__init__(self._pull(first, pieces), status, headers, MEDIA_TYPE)
        self._pieces = pieces

    async def _pull(self, first: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        piece = first
        while piece:
            yield piece
            piece = await to_thread.run_sync(next, pieces, b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if isinstance(self._pieces, Generator):
                with CancelScope(shield=True):
                    await to_thread.run_sync(self._pieces.close)


def _requested_range(request: Request, file: StoredFile) -> tuple[int, int] | None:
    """[start, stop) of the one range that is asked for; None for the whole file, as also for several ranges."""
    asked = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", request.headers.get("range", ""), re.ASCII)
    unchanged = request.headers.get("if-range", file.etag) == file.etag
    if asked is None or not unchanged or asked.groups() == ("", ""):
        return None
    first, last = asked.groups()
    if not first:
        start, stop = max(0, file.size - int(last)), file.size
    else:
        start, stop = int(first), min(file.size, int(last) + 1 if last else file.size)
        if last and int(last) < int(first):
            return None  # not a range by its grammar, so it is ignored
    if start >= stop:
        raise RangeNotSatisfiable(
            f"The file has {file.size} bytes.", headers={"Content-Range": f"bytes */{file.size}", "ETag": file.etag}
        )
    return start, stop


def _names(if_none_match: str, etag: str) -> bool:
    """Weak comparison, as RFC 9110 wants it for If-None-Match."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def _attachment(filename: str) -> str:
    plain = re.sub(r"[^\w.-]", "_", filename, flags=re.ASCII)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
