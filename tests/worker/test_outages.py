"""PostgreSQL and Redis go away for a moment, as they do in life; the work is not lost."""

import threading
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, text

from app.embedded.redis import Redis
from app.settings import Settings
from tests.worker.jobs import Desk, program, until
from tests.worker.processes import Service
from workers.reconciler import Reconciler
from workers.worker import Worker


@pytest.mark.usefixtures("worker")
def test_broken_database_connections_cost_no_attempt(desk: Desk, database_url: str) -> None:
    job_id = desk.compress(program("succeed", seconds=1.5))
    until(lambda: desk.job(job_id).status == "running")
    with psycopg.connect(database_url, autocommit=True) as connection:
        for _ in range(10):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("SELECT pg_sleep(0.1)")
    desk.engine.dispose()
    assert desk.wait(job_id, "succeeded").attempt == 1
    assert len(desk.results(job_id)) == 1


def test_a_worker_works_on_without_redis(desk: Desk, settings: Settings, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    with Redis(tmp_path / "redis") as redis:
        service = Service(settings.model_copy(update={"redis_url": redis.url}), logs)
    with service:
        until(lambda: "Cannot connect to redis" in service.log.read_text())
        desk.wait(desk.compress(program("succeed")), "succeeded")


def test_a_worker_without_an_engine_spends_no_attempts(desk: Desk, settings: Settings) -> None:
    from workers.pool import Pool

    worker = Worker(settings, ("cpu",), Pool(1, "tests.worker.no_such_engine"))
    worker.start()
    try:
        job_id = desk.compress(program("succeed"))
        until(lambda: bool(worker._threads))
    finally:
        worker.close()
    assert (desk.job(job_id).status, desk.job(job_id).attempt) == ("queued", 0)


def test_a_reconciler_whose_round_broke_leads_again(settings: Settings, engine: Engine) -> None:
    """The lock of who leads is a connection's: one that went back to a pool with it would keep everybody out."""
    reconciler = Reconciler(settings.model_copy(update={"reconcile_seconds": 0.05}))
    rounds = []

    def round_() -> None:
        rounds.append(len(rounds))
        if len(rounds) == 1:
            with reconciler.engine.connect() as connection:
                connection.execute(text("SELECT 1 / 0"))
        if len(rounds) == 3:
            reconciler.stop.set()

    reconciler.round = round_  # type: ignore[method-assign]
    watchdog = threading.Timer(20, reconciler.stop.set)
    watchdog.start()
    reconciler.run()
    watchdog.cancel()
    assert len(rounds) == 3
