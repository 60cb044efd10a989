"""Blobs in PostgreSQL: chunk rows of 1 MiB. Memory stays constant whatever the size, and no connection is held while
a slow client sends or receives."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
from psycopg.errors import DiskFull, ForeignKeyViolation
from sqlalchemy import Connection, Engine, delete, select
from sqlalchemy.orm import Session

from app.db.tables import BlobChunk
from app.storage.base import CHUNK, Data, StorageFullError
from app.storage.staging import StagedWriter, drop_staged, old_staged, stored_size

BATCH = 4  # chunks a transaction when writing, and a query when reading


class PostgresStore:
    backend = "postgres"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def writer(self, tenant_id: UUID, expected_size: int | None = None) -> "PostgresWriter":  # noqa: ARG002 - a remote server's free space is unknown
        return PostgresWriter(self._engine, tenant_id, self.backend)

    def read(self, blob_id: UUID, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        size = stored_size(self._engine, blob_id, self.backend)
        return self._chunks(blob_id, start, size if stop is None else min(stop, size))

    def _chunks(self, blob_id: UUID, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            first = start // CHUNK
            last = min(first + BATCH - 1, (stop - 1) // CHUNK)
            for number, data in self._batch(blob_id, first, last):
                begin = number * CHUNK
                piece = data[start - begin : stop - begin]
                start += len(piece)
                yield piece

    def _batch(self, blob_id: UUID, first: int, last: int) -> list[tuple[int, bytes]]:
        query = "SELECT number, data FROM blob_chunks WHERE blob_id = %s AND number BETWEEN %s AND %s ORDER BY number"
        with self._engine.connect() as connection:
            # SQLAlchemy would fetch bytes as hexadecimal text, at twice the size
            rows = driver(connection).execute(query, [blob_id, first, last], binary=True).fetchall()
        if len(rows) != last - first + 1:
            raise KeyError(blob_id)  # removed while it was being read
        return rows

    def check(self) -> None:
        with self._engine.connect() as connection:
            connection.execute(select(BlobChunk.number).limit(0))

    def remove(self, blob_id: UUID) -> None:
        with Session(self._engine) as session:
            session.execute(delete(BlobChunk).where(BlobChunk.blob_id == blob_id))
            session.commit()

    def sweep(self, older_than_seconds: float) -> int:
        old = old_staged(self._engine, self.backend, older_than_seconds)
        return sum(drop_staged(self._engine, blob_id, nothing_more) for blob_id in old)


class PostgresWriter(StagedWriter):
    def __init__(self, engine: Engine, tenant_id: UUID, backend: str) -> None:
        super().__init__(engine, tenant_id, backend)
        self._pending = bytearray()
        self._chunks = 0

    def _append(self, data: Data) -> None:
        self._pending += data
        while len(self._pending) >= BATCH * CHUNK:
            self._insert(BATCH * CHUNK)

    def _flush(self) -> None:
        self._insert(len(self._pending))

    def _discard(self) -> None:
        nothing_more()

    def _insert(self, size: int) -> None:
        try:
            with (
                self._engine.begin() as connection,
                driver(connection).cursor() as cursor,
                cursor.copy("COPY blob_chunks (blob_id, number, data) FROM STDIN (FORMAT BINARY)") as copy,
            ):
                copy.set_types(["uuid", "int4", "bytea"])
                with memoryview(self._pending) as pending:
                    for start in range(0, size, CHUNK):
                        copy.write_row((self.blob_id, self._chunks, pending[start : min(start + CHUNK, size)]))
                        self._chunks += 1
        except DiskFull as error:
            raise StorageFullError("the database has no room left") from error
        except ForeignKeyViolation as error:
            raise KeyError(self.blob_id) from error
        del self._pending[:size]


def nothing_more() -> None:
    """The chunks go with the row."""


def driver(connection: Connection) -> psycopg.Connection[tuple[Any, ...]]:
    """psycopg's own connection, for COPY and for binary results; in SQLAlchemy's transaction all the same."""
    own = connection.connection.driver_connection
    if not isinstance(own, psycopg.Connection):
        raise TypeError(f"expected a connection of psycopg, not {type(own).__name__}")
    return own
