"""What every store must do."""

import hashlib
import random
import threading
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, delete, func, select, text
from sqlalchemy.orm import Session

from app.db.tables import Blob, BlobChunk, Tenant
from app.storage.base import CHUNK, BlobStore, BlobWriter


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def put(store: BlobStore, engine: Engine, tenant: UUID, data: bytes, piece: int = 300_000) -> UUID:
    with store.writer(tenant, len(data)) as writer, Session(engine) as session:
        for start in range(0, len(data), piece):
            writer.write(memoryview(data)[start : start + piece])
        assert writer.size == len(data)
        assert writer.finish() == hashlib.sha256(data).digest()
        blob_id = writer.publish(session)
        session.commit()
    return blob_id


def get(store: BlobStore, blob_id: UUID, *span: int) -> bytes:
    pieces = list(store.read(blob_id, *span))
    assert all(0 < len(piece) <= CHUNK for piece in pieces)
    return b"".join(pieces)


def bytes_kept(engine: Engine, tmp_path: Path) -> int:
    """What really lies in the store, whatever the rows say."""
    with Session(engine) as session:
        chunks = session.scalar(select(func.coalesce(func.sum(func.length(BlobChunk.data)), 0)))
    return int(chunks) + sum(path.stat().st_size for path in tmp_path.rglob("blobs/*/*"))


def rows(engine: Engine) -> int:
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(Blob)) or 0


@pytest.fixture
def other_tenant(engine: Engine) -> UUID:
    with Session(engine) as session:
        row = Tenant(name="other")
        session.add(row)
        session.commit()
        return row.id


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 9 * CHUNK + 17])
def test_round_trip(store, engine, tenant, tmp_path, size):
    data = content(size)
    assert get(store, put(store, engine, tenant, data)) == data
    assert bytes_kept(engine, tmp_path) == size


def test_ranges_across_chunk_borders(store, engine, tenant):
    size = 6 * CHUNK + 5
    data = content(size)
    blob_id = put(store, engine, tenant, data)
    borders = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 5 * CHUNK + 3, size - 1, size]
    for start in borders:
        for stop in borders:
            assert get(store, blob_id, start, stop) == data[start:stop]
        assert get(store, blob_id, start) == data[start:]
    assert get(store, blob_id, 5, size + 100) == data[5:]
    assert get(store, blob_id, size + 1) == b""


def test_a_size_that_was_promised_and_not_reached(store, engine, tenant, tmp_path):
    with store.writer(tenant, 3 * CHUNK) as writer, Session(engine) as session:
        writer.write(b"short")
        writer.finish()
        blob_id = writer.publish(session)
        session.commit()
    assert get(store, blob_id) == b"short"
    assert bytes_kept(engine, tmp_path) == 5


def test_the_same_content_is_kept_once_a_tenant(store, engine, tenant, other_tenant, tmp_path):
    data = content(2 * CHUNK + 1)
    first = put(store, engine, tenant, data)
    assert put(store, engine, tenant, data) == first
    assert bytes_kept(engine, tmp_path) == len(data)
    assert rows(engine) == 1

    theirs = put(store, engine, other_tenant, data)
    assert theirs != first
    assert bytes_kept(engine, tmp_path) == 2 * len(data)


def test_an_abandoned_writer_leaves_nothing(store, engine, tenant, tmp_path):
    with store.writer(tenant, 20 * CHUNK) as writer:
        writer.write(content(9 * CHUNK))
        assert rows(engine) == 1
    assert rows(engine) == 0
    assert bytes_kept(engine, tmp_path) == 0


def test_nothing_is_readable_before_the_publishing_transaction_commits(store, engine, tenant):
    with store.writer(tenant) as writer, Session(engine) as session:
        writer.write(b"weights")
        with pytest.raises(KeyError):
            store.read(writer.blob_id)
        writer.finish()
        with pytest.raises(KeyError):
            store.read(writer.blob_id)
        blob_id = writer.publish(session)
        with pytest.raises(KeyError):
            store.read(blob_id)
        session.commit()
        assert get(store, blob_id) == b"weights"


def test_a_rolled_back_publication_leaves_nothing(store, engine, tenant, tmp_path):
    with store.writer(tenant) as writer, Session(engine) as session:
        writer.write(b"weights")
        writer.finish()
        writer.publish(session)
        session.rollback()
    assert rows(engine) == 0
    assert bytes_kept(engine, tmp_path) == 0


def test_a_writer_may_end_before_its_transaction_does(store, engine, tenant):
    with Session(engine) as session:
        with store.writer(tenant) as writer:
            writer.write(b"weights")
            writer.finish()
            blob_id = writer.publish(session)
        session.commit()
    assert get(store, blob_id) == b"weights"


def finished(store: BlobStore, tenant: UUID, data: bytes) -> BlobWriter:
    writer = store.writer(tenant)
    writer.write(data)
    writer.finish()
    return writer


@pytest.mark.parametrize("winner_commits", [True, False])
def test_racing_publishers_of_the_same_content(store, engine, tenant, tmp_path, winner_commits):
    """The second waits in its publish until the first transaction ends, then takes the blob that there is."""
    data = content(CHUNK + 1)
    second_id: list[UUID] = []

    def publish_second() -> None:
        with second, Session(engine) as session:
            second_id.append(second.publish(session))
            session.commit()

    first, second = finished(store, tenant, data), finished(store, tenant, data)
    with first, Session(engine) as session:
        first_id = first.publish(session)
        thread = threading.Thread(target=publish_second)
        thread.start()
        wait_for_blocked_backend(engine)
        session.commit() if winner_commits else session.rollback()
    thread.join(10)

    assert second_id == [first_id if winner_commits else second.blob_id]
    assert get(store, second_id[0]) == data
    assert rows(engine) == 1
    assert bytes_kept(engine, tmp_path) == len(data)


def wait_for_blocked_backend(engine: Engine) -> None:
    with engine.connect() as connection:
        for _ in range(1000):
            waiting = connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one()
            if waiting:
                return
            connection.execute(text("SELECT pg_sleep(0.01)"))
    raise AssertionError("no publisher waited for the other")


def test_many_publishers_at_once(store, engine, tenant, tmp_path):
    data = content(CHUNK)
    ids: list[UUID] = []

    def publish() -> None:
        ids.append(put(store, engine, tenant, data))

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert rows(engine) == 1
    assert bytes_kept(engine, tmp_path) == len(data)


def test_remove_really_deletes(store, engine, tenant, tmp_path):
    kept, removed = put(store, engine, tenant, b"kept"), put(store, engine, tenant, content(3 * CHUNK))
    with Session(engine) as session:
        session.execute(delete(Blob).where(Blob.id == removed))
        session.commit()
    store.remove(removed)
    store.remove(removed)  # a retry after a crash is harmless
    assert bytes_kept(engine, tmp_path) == len(b"kept")
    assert get(store, kept) == b"kept"
    with pytest.raises(KeyError):
        store.read(removed)


def test_the_same_content_can_be_stored_again_while_it_is_being_removed(store, engine, tenant):
    data = content(CHUNK)
    old = put(store, engine, tenant, data)
    with Session(engine) as session:
        session.execute(delete(Blob).where(Blob.id == old))
        session.commit()
    new = put(store, engine, tenant, data)
    store.remove(old)
    assert get(store, new) == data


def test_sweep_removes_what_was_never_published(store, engine, tenant, tmp_path):
    published = put(store, engine, tenant, b"published")
    store.writer(tenant).write(content(5 * CHUNK))  # its process was killed: no context ever ended
    finished(store, tenant, b"finished, not published")

    assert store.sweep(older_than_seconds=3600) == 0
    assert store.sweep(older_than_seconds=0) == 2
    assert rows(engine) == 1
    assert bytes_kept(engine, tmp_path) == len(b"published")
    assert get(store, published) == b"published"


def test_what_was_swept_while_it_arrived_cannot_be_published(store, engine, tenant):
    with store.writer(tenant) as writer:
        writer.write(b"slow")
        store.sweep(older_than_seconds=0)
        with pytest.raises(KeyError):
            writer.finish()


def test_what_was_swept_after_it_arrived_cannot_be_published(store, engine, tenant):
    with store.writer(tenant) as writer, Session(engine) as session:
        writer.write(b"slow")
        writer.finish()
        store.sweep(older_than_seconds=0)
        with pytest.raises(KeyError):
            writer.publish(session)


def test_an_unknown_blob_is_a_key_error(store):
    with pytest.raises(KeyError):
        store.read(uuid4())
