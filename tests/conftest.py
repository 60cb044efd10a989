"""Real servers for every test that asks for them: each worker has a database of its own, empty at each test's start."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
import redis
from sqlalchemy import Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from app.auth_keys import digest, new_key, prefix
from app.db.session import make_async_engine, make_engine
from app.db.tables import ApiKey, Base, Tenant
from app.settings import Settings
from app.storage import open_store
from app.storage.base import BlobStore
from tests.servers import TEMPLATE, shared
from tests.service_process import service

# what the developer has set for a service of their own is none of the tests' business
for _name in list(os.environ):
    if _name.startswith("MODELPRESS_") or _name in {"DATABASE_URL", "REDIS_URL", "STORAGE_URL"}:
        del os.environ[_name]

# a shell starts what runs in the background without SIGINT, and all its children; tests send it as Ctrl-C does
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

__all__ = ["service"]

SECRET = "a secret that only tests know, 32+"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, str]:
    """Under xdist the session's owner is the parent of every worker."""
    base = tmp_path_factory.getbasetemp()
    if worker_id == "master":
        return shared(base, os.getpid())
    return shared(base.parent, os.getppid())


@pytest.fixture(scope="session")
def worker_database_url(servers: dict[str, str], worker_id: str) -> str:
    with psycopg.connect(servers["postgres"], autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {worker_id} TEMPLATE {TEMPLATE}")
    return make_url(servers["postgres"]).set(database=worker_id).render_as_string(hide_password=False)


@pytest.fixture
def database_url(worker_database_url: str) -> str:
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    with psycopg.connect(worker_database_url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        connection.execute(f"TRUNCATE {tables} RESTART IDENTITY")
    return worker_database_url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(anyio_backend: str, database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = make_async_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def redis_url(servers: dict[str, str], worker_id: str) -> str:
    number = 0 if worker_id == "master" else int(worker_id.removeprefix("gw"))
    url = servers["redis"].removesuffix("/0") + f"/{number}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    return Settings(database_url=database_url, redis_url=redis_url, home=tmp_path / "home", secret=SECRET)


@pytest.fixture
def store(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path) -> BlobStore:
    """In PostgreSQL; `indirect` parametrization with "file" gives one in files."""
    kind = getattr(request, "param", "postgres")
    return open_store("postgres:" if kind == "postgres" else f"file://{tmp_path}/blobs", engine)


@pytest.fixture
def tenant(engine: Engine) -> UUID:
    with Session(engine) as session:
        row = Tenant(name="acme")
        session.add(row)
        session.commit()
        return row.id


@pytest.fixture
def api_key(engine: Engine, tenant: UUID, settings: Settings) -> str:
    """A key of `tenant`."""
    key = new_key()
    with Session(engine) as session:
        session.add(ApiKey(tenant_id=tenant, name="tests", prefix=prefix(key), digest=digest(settings.secret, key)))
        session.commit()
    return key
