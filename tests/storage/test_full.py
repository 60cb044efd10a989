"""No room: said at once where the size is known, and nothing is kept of what did not fit."""

import resource

import pytest
from sqlalchemy import text

from app.storage import open_store
from app.storage.base import CHUNK, StorageFullError
from tests.storage.test_conformance import bytes_kept, content, rows

MORE_THAN_ANY_DISK = 1 << 43


@pytest.fixture
def files(engine, tmp_path):
    return open_store(f"file://{tmp_path}/blobs", engine)


def test_a_file_that_will_not_fit_is_refused_before_its_first_byte(files, engine, tenant, tmp_path):
    with pytest.raises(StorageFullError):
        files.writer(tenant, MORE_THAN_ANY_DISK)
    assert rows(engine) == 0
    assert bytes_kept(engine, tmp_path) == 0


@pytest.fixture
def largest_file():
    """The kernel refuses longer files than this from here on, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * CHUNK, hard))
    yield 4 * CHUNK
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_a_file_arrives(files, engine, tenant, tmp_path, largest_file):
    with pytest.raises(StorageFullError), files.writer(tenant) as writer:
        writer.write(content(largest_file + 2 * CHUNK))
    assert rows(engine) == 0
    assert bytes_kept(engine, tmp_path) == 0


@pytest.fixture
def full_database(engine):
    """Its answer, from a trigger, is the one that a full disk gives (53100)."""
    with engine.begin() as connection:
        connection.execute(
            text("""
                CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN IF NEW.number > 4 THEN RAISE 'no space left on device' USING ERRCODE = '53100'; END IF;
                RETURN NEW; END $$
            """)
        )
        connection.execute(
            text("CREATE TRIGGER no_room BEFORE INSERT ON blob_chunks FOR EACH ROW EXECUTE FUNCTION no_room()")
        )
    yield
    with engine.begin() as connection:
        connection.execute(text("DROP FUNCTION no_room CASCADE"))


def test_a_database_that_fills_while_a_blob_arrives(engine, tenant, tmp_path, full_database):
    with pytest.raises(StorageFullError), open_store("postgres:", engine).writer(tenant) as writer:
        writer.write(content(9 * CHUNK))
    assert rows(engine) == 0
    assert bytes_kept(engine, tmp_path) == 0
