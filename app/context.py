"""What a running service holds, and what a request is given of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, cast
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from app.db.session import make_async_engine, make_engine
from app.health.metrics import Metrics
from app.jobs.watcher import JobWatcher
from app.settings import Settings
from app.storage import open_store
from app.storage.base import BlobStore

if TYPE_CHECKING:
    from celery import Celery


@dataclass
class Waker:
    """Sends wake-ups beside the request, so that a slow Redis delays no answer. The rows are the truth anyway."""

    redis_url: str
    _threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    """Of its own: where Redis hangs, uploads and downloads must not wait for threads."""
    _celery: "Celery | None" = None
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    def wake(self, queue: str, job_id: UUID) -> None:
        task = asyncio.create_task(to_thread.run_sync(self._send, queue, job_id, limiter=self._threads))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def settle(self) -> None:
        await asyncio.gather(*self._running, return_exceptions=True)

    def _send(self, queue: str, job_id: UUID) -> None:
        from app.queue import make_celery, wake  # noqa: PLC0415 - Celery takes a while to import: not before it is used

        self._celery = self._celery or make_celery(self.redis_url)
        wake(self._celery, queue, job_id)


@dataclass
class Services:
    settings: Settings
    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    blobs: BlobStore
    watcher: JobWatcher
    waker: Waker
    metrics: Metrics
    in_flight: set[tuple[UUID, str]] = field(default_factory=set)
    """(tenant, idempotency key) of the requests that run now."""


@asynccontextmanager
async def running(settings: Settings, metrics: Metrics) -> AsyncIterator[Services]:
    engine = make_async_engine(settings.database_url)
    blob_engine = make_engine(settings.database_url, pool_size=20)
    watcher = JobWatcher(settings.database_url)
    waker = Waker(settings.redis_url)
    listening = asyncio.create_task(watcher.run())
    try:
        blobs = open_store(settings.storage_url, blob_engine)
        sessions = async_sessionmaker(engine, expire_on_commit=False)
        yield Services(settings, engine, sessions, blobs, watcher, waker, metrics)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await waker.settle()
        await engine.dispose()
        blob_engine.dispose()


async def services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


@dataclass(frozen=True)
class Caller:
    """Who asks. Whatever is read or written for a caller goes through its tenant."""

    tenant_id: UUID
    services: Services


Context = Annotated[Services, Depends(services)]
