"""Lets go of stored bytes that nothing refers to any more."""

from collections.abc import Iterable, Sequence
from uuid import UUID

from anyio import to_thread
from sqlalchemy import ColumnElement, delete, exists, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tables import Blob, Dataset, JobCheckpoint, ModelFile
from app.storage.base import BlobStore


def unused() -> ColumnElement[bool]:
    """Of a blob's row: nothing refers to it."""
    return ~or_(*(exists().where(table.blob_id == Blob.id) for table in (ModelFile, Dataset, JobCheckpoint)))


class BlobRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def release(self, blob_ids: Sequence[UUID]) -> list[UUID]:
        """Delete the rows of those that nothing refers to; returns them.

        The lock waits for an upload of the same content that is just taking such a blob over.
        """
        await self.session.execute(select(Blob.id).where(Blob.id.in_(blob_ids)).order_by(Blob.id).with_for_update())
        left = delete(Blob).where(Blob.id.in_(blob_ids), unused()).returning(Blob.id)
        return list(await self.session.scalars(left))


async def remove_bytes(store: BlobStore, blob_ids: Iterable[UUID]) -> None:
    """After the commit that deleted the rows; what a crash leaves here, the store's sweep finds."""
    for blob_id in blob_ids:
        await to_thread.run_sync(store.remove, blob_id)
