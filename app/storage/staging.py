"""The life of a blob's row, the same for every storage: staged, hashed, published or dropped."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self
from uuid import UUID

from psycopg.errors import UniqueViolation
from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from uuid6 import uuid7

from app.db.tables import Blob
from app.storage.base import Data


class StagedWriter(ABC):
    """Hashes what passes through; a storage adds where the bytes go."""

    def __init__(self, engine: Engine, tenant_id: UUID, backend: str) -> None:
        self._engine = engine
        self._tenant_id = tenant_id
        self._hash = hashlib.sha256()
        self._digest: bytes | None = None
        self.size = 0
        self.blob_id: UUID = uuid7()
        with Session(engine) as session:
            session.add(Blob(id=self.blob_id, tenant_id=tenant_id, backend=backend))
            session.commit()

    @abstractmethod
    def _append(self, data: Data) -> None: ...

    @abstractmethod
    def _flush(self) -> None:
        """Returns when everything is on stable storage."""

    @abstractmethod
    def _discard(self) -> None:
        """Remove whatever bytes there are; once more does no harm."""

    def write(self, data: Data) -> None:
        self._hash.update(data)
        self.size += len(data)
        self._append(data)

    def finish(self) -> bytes:
        digest = self._hash.digest()
        row = update(Blob).where(Blob.id == self.blob_id).values(sha256=digest, size=self.size).returning(Blob.id)
        with Session(self._engine) as session:
            if session.scalar(row) is None:
                raise KeyError(self.blob_id)
            session.commit()
        self._flush()
        self._digest = digest
        return digest

    def publish(self, session: Session) -> UUID:
        """Of two transactions that publish the same content, the later waits for the earlier one's end, and then takes
        its blob. The lock on an older blob keeps it from being deleted before the caller's reference commits."""
        if self._digest is None:
            raise RuntimeError("publish comes after finish")
        older = (
            select(Blob.id)
            .where(Blob.tenant_id == self._tenant_id, Blob.sha256 == self._digest, Blob.state == "stored")
            .with_for_update(read=True, key_share=True)
        )
        flip = (
            update(Blob)
            .where(Blob.id == self.blob_id)
            .values(state="stored")
            .returning(Blob.id)
            .execution_options(synchronize_session=False)
        )
        while True:
            found = session.scalar(older)
            if found is not None:
                return found  # our copy stays staged and goes when this writer's context ends
            try:
                with session.begin_nested():
                    flipped = session.scalar(flip)
            except IntegrityError as error:
                if not isinstance(error.orig, UniqueViolation):
                    raise
                continue
            if flipped is None:
                raise KeyError(self.blob_id)
            return flipped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        drop_staged(self._engine, self.blob_id, self._discard)


def drop_staged(engine: Engine, blob_id: UUID, discard: Callable[[], None]) -> bool:
    """True where the blob was staged and is gone. A row that an open transaction is just publishing is let be.

    The bytes go first: a crash in between leaves a row by which the next sweep finds what is left.
    """
    free = select(Blob).where(Blob.id == blob_id, Blob.state == "staged").with_for_update(skip_locked=True)
    with Session(engine) as session:
        row = session.scalar(free)
        if row is None:
            return False
        discard()
        session.delete(row)
        session.commit()
    return True


def old_staged(engine: Engine, backend: str, older_than_seconds: float) -> list[UUID]:
    age = func.make_interval(0, 0, 0, 0, 0, 0, older_than_seconds)
    old = select(Blob.id).where(Blob.state == "staged", Blob.backend == backend, Blob.created_at < func.now() - age)
    with Session(engine) as session:
        return list(session.scalars(old))


def stored_size(engine: Engine, blob_id: UUID, backend: str) -> int:
    """Raises KeyError where there is no such stored blob."""
    with Session(engine) as session:
        size = session.scalar(
            select(Blob.size).where(Blob.id == blob_id, Blob.state == "stored", Blob.backend == backend)
        )
    if size is None:
        raise KeyError(blob_id)
    return size
