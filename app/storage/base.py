"""What every blob storage does. Calls block: the service makes them in a thread, the worker directly.

A blob is written to a staged place under the id of its row, then published by the transaction that publishes what
refers to it. Nothing that is staged is ever readable; the reconciler removes what was never published.
"""

from collections.abc import Iterator
from typing import Protocol, Self
from uuid import UUID

from sqlalchemy.orm import Session

CHUNK = 1 << 20

Data = bytes | bytearray | memoryview


class StorageFullError(Exception):
    """There is no room for the blob; nothing of it was kept."""


class BlobWriter(Protocol):
    """A blob that is being written. Leaving the context removes it, unless a transaction has published it.

    Each call raises KeyError where the blob took so long that it was swept meanwhile.
    """

    blob_id: UUID
    size: int

    def write(self, data: Data) -> None: ...

    def finish(self) -> bytes:
        """Flush everything to stable storage and return the SHA-256 digest (32 bytes)."""

    def publish(self, session: Session) -> UUID:
        """In the caller's transaction: make the blob readable once that commits. Returns the id of the stored blob,
        which is an older one where the tenant already has this content."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class BlobStore(Protocol):
    backend: str

    def writer(self, tenant_id: UUID, expected_size: int | None = None) -> BlobWriter:
        """Raises StorageFullError where `expected_size` bytes will not fit."""

    def read(self, blob_id: UUID, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes [start, stop) in pieces of at most 1 MiB. Raises KeyError where there is no such stored blob."""

    def check(self) -> None:
        """Raises, whatever the storage raises, where blobs can be neither written nor read."""

    def remove(self, blob_id: UUID) -> None:
        """Remove the bytes for good, after the transaction that took the row away. Once more does no harm."""

    def sweep(self, older_than_seconds: float) -> int:
        """Remove staged blobs that were never published. Returns how many."""
