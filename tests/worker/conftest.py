from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine

from app.settings import Settings
from app.storage.base import BlobStore
from tests.worker.jobs import Desk
from workers.pool import Pool
from workers.worker import Worker

ROOT = Path(__file__).parents[2]
STAND_IN = "tests.worker.stand_in"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Everything that takes seconds in life takes fractions of one here."""
    quick = {
        "lease_seconds": 2,
        "heartbeat_seconds": 0.4,
        "reconcile_seconds": 0.2,
        "poll_seconds": 0.2,
        "retry_seconds": 0.1,
        "shutdown_seconds": 0.5,
        "worker_slots": 1,
        "runner_memory_bytes": 512 << 20,
    }
    return settings.model_copy(update=quick)


@pytest.fixture
def desk(engine: Engine, store: BlobStore, tenant: UUID) -> Desk:
    return Desk(engine, store, tenant)


def stand_in_pool(spares: int = 2) -> Pool:
    return Pool(spares, STAND_IN, (ROOT,))


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    """In this process, without Celery: it finds its work by polling."""
    worker = Worker(settings, ("cpu", "ingest"), stand_in_pool())
    worker.start()
    yield worker
    worker.close()
