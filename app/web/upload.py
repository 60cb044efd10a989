"""Receives a file: streamed to storage while it is hashed, bounded, and kept only when all of it is right."""

import hmac
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePosixPath

from anyio import CancelScope, to_thread
from fastapi import Request

from app.context import Caller
from app.problems import (
    DigestMismatch,
    EmptyBody,
    FieldError,
    Invalid,
    MalformedRequest,
    StorageFull,
    TooLarge,
    UnsupportedFormat,
)
from app.storage.base import BlobWriter, StorageFullError

BATCH = 4 << 20
"""Bytes a thread hop: the 64 KiB pieces of the network are gathered up to this."""


def check_filename(filename: str, suffixes: tuple[str, ...]) -> str:
    """The file's own name. Raises UnsupportedFormat unless it ends in one of the suffixes."""
    name = PurePosixPath(filename.replace("\\", "/")).name
    if not name.lower().endswith(suffixes):
        raise UnsupportedFormat(f"{name!r} is not accepted; the name must end in: {', '.join(suffixes)}")
    if name.startswith(".") and name.count(".") == 1:
        raise Invalid.at(FieldError(pointer="query:filename", detail="a name is missing before the suffix"))
    return name


@asynccontextmanager
async def received(request: Request, caller: Caller) -> AsyncIterator[BlobWriter]:
    """The request's body as a finished blob, for the caller to publish; unpublished, it is gone on leaving.

    Raises TooLarge, EmptyBody, DigestMismatch, MalformedRequest or StorageFull.
    """
    _check_raw(request)
    limit = caller.services.settings.max_upload_bytes
    expected = _announced_digest(request)
    length = _announced_length(request, limit)
    try:
        writer = await to_thread.run_sync(caller.services.blobs.writer, caller.tenant_id, length)
        try:
            await _store_body(request, writer, limit)
            if not writer.size:
                raise EmptyBody("The body is empty; send the file's bytes as they are.")
            digest = await to_thread.run_sync(writer.finish)
            if expected is not None and not hmac.compare_digest(expected, digest):
                raise DigestMismatch("The bytes that arrived do not have the SHA-256 that Repr-Digest announced.")
            yield writer
        finally:
            with CancelScope(shield=True):
                await to_thread.run_sync(writer.__exit__, None, None, None)
    except StorageFullError:
        raise StorageFull("There is no room for this file on the server.") from None


def _check_raw(request: Request) -> None:
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise UnsupportedFormat("Send the file's bytes as the body, without a form: `curl --data-binary @FILE`.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedFormat("Send the file's bytes as they are, without Content-Encoding.")


async def _store_body(request: Request, writer: BlobWriter, limit: int) -> None:
    batch, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"A file has at most {limit} bytes here.")
        batch += chunk
        if len(batch) >= BATCH:
            await to_thread.run_sync(writer.write, batch)
            batch = bytearray()
    if batch:
        await to_thread.run_sync(writer.write, batch)


def _announced_length(request: Request, limit: int) -> int | None:
    sent = request.headers.get("content-length")
    if sent is None:
        return None
    if not re.fullmatch(r"\d{1,18}", sent, re.ASCII):
        raise MalformedRequest("Content-Length is not a number.")
    if int(sent) > limit:
        raise TooLarge(f"A file has at most {limit} bytes here; this one has {sent}.")
    if int(sent) == 0:
        raise EmptyBody("The body is empty; send the file's bytes as they are.")
    return int(sent)


def _announced_digest(request: Request) -> bytes | None:
    """SHA-256 from `Repr-Digest: sha-256=:…:` (RFC 9530); other algorithms in it are not looked at."""
    sent = request.headers.get("repr-digest")
    if sent is None:
        return None
    found = re.search(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):", sent)
    if found is None:
        raise MalformedRequest("Repr-Digest has no value of the form `sha-256=:base64:`.")
    return b64decode(found[1])
