"""The migrations build exactly the tables that the code speaks of."""

import threading
from collections.abc import Iterator

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, make_url, text

from app.db.migrate import config, upgrade
from app.db.session import make_engine, normalise
from app.db.tables import Base
from workers.reconciler import LEADER

# every constraint and index as PostgreSQL itself writes it down: alembic does not compare CHECKs
DEFINITIONS = """
    SELECT conrelid::regclass::text AS on_table, conname AS name, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
"""


def definitions(engine: Engine) -> set[tuple[str, str, str]]:
    with engine.connect() as connection:
        return {tuple(row) for row in connection.execute(text(DEFINITIONS)) if row.on_table != "alembic_version"}


def upgrade_to(url: str, revision: str) -> None:
    alembic = config()
    with make_engine(url).begin() as connection:
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, revision)


@pytest.fixture
def empty_database_url(servers, worker_id) -> Iterator[str]:
    name = f"empty_{worker_id}"
    with psycopg.connect(servers["postgres"], autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield make_url(servers["postgres"]).set(database=name).render_as_string(hide_password=False)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_the_migrated_schema_is_that_of_the_tables(engine):
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_the_migrated_constraints_and_indexes_are_those_of_the_tables(engine, empty_database_url):
    created = make_engine(empty_database_url)
    Base.metadata.create_all(created)
    expected = definitions(created)
    created.dispose()
    assert len(expected) > 50
    assert definitions(engine) == expected


def test_chunks_are_kept_out_of_line_and_uncompressed(engine):
    with engine.connect() as connection:
        storage = connection.execute(
            text("SELECT attstorage FROM pg_attribute WHERE attrelid = 'blob_chunks'::regclass AND attname = 'data'")
        ).scalar_one()
    assert storage == "e"


def test_many_processes_may_start_on_an_empty_database_at_once(empty_database_url):
    failures: list[Exception] = []

    def start() -> None:
        try:
            upgrade(empty_database_url)
        except Exception as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0003",)]


def test_files_from_before_they_had_a_suffix_get_that_of_their_model(empty_database_url):
    upgrade_to(empty_database_url, "0001")
    filenames = {"upload": "net.v2.ONNX", "pt2": "program.pt2"}
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("INSERT INTO tenants (id, name) VALUES (gen_random_uuid(), 'acme')")
        for name, filename in filenames.items():
            connection.execute(
                """
                WITH blob AS (
                    INSERT INTO blobs (id, tenant_id, state, backend)
                    SELECT gen_random_uuid(), id, 'staged', 'postgres' FROM tenants RETURNING id
                ), model AS (
                    INSERT INTO models (id, tenant_id, name, filename, status)
                    SELECT gen_random_uuid(), id, 'net', %s, 'processing' FROM tenants RETURNING id
                )
                INSERT INTO model_files (model_id, format, blob_id) SELECT model.id, %s, blob.id FROM model, blob
                """,
                [filename, name],
            )
    upgrade(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        found = dict(connection.execute("SELECT format, suffix FROM model_files").fetchall())
    assert found == {"upload": ".ONNX", "pt2": ".pt2"}


def test_a_leading_reconciler_does_not_hold_up_a_migration(database_url):
    with psycopg.connect(database_url) as leader:
        leader.execute("SELECT pg_advisory_lock(%s)", [LEADER])
        upgrade(f"{database_url}?options=-clock_timeout%3D5s")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_addresses_as_platforms_write_them(scheme):
    assert normalise(f"{scheme}://u:p@db:5432/x").render_as_string(hide_password=False) == (
        "postgresql+psycopg://u:p@db:5432/x"
    )


def test_another_database_is_refused_by_name():
    with pytest.raises(ValueError, match="DATABASE_URL must start with postgresql://"):
        normalise("mysql://u:p@db/x")
