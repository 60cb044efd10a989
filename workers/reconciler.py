"""`python -m workers.reconciler`: sees to what nobody else will. One of them works at a time, the others wait for it.

Leases that ran out are taken back, waiting jobs get their wake-up again, bytes that were never published go.
"""

import logging
import signal
import threading

from celery import Celery
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from app.db.session import make_engine
from app.db.tables import Job
from app.queue import QUEUES, make_celery, wake
from app.settings import Settings, get_settings
from app.storage import open_store
from app.storage.base import BlobStore
from workers.checkpoints import drop_outlived
from workers.takeover import take_back

log = logging.getLogger(__name__)

LEADER = 0x6D6F64656C  # "model": the advisory lock that says who leads
MOST_WAKES = 16
"""In a queue at once. One is enough for a worker to work off everything; more reach more workers."""


def wake_again(engine: Engine, celery: Celery, redis: Redis) -> None:
    """Messages may have been lost, and a pause between attempts ends without one."""
    for queue in QUEUES:
        waiting = (
            select(Job.id)
            .where(Job.status == "queued", Job.queue == queue, Job.not_before <= func.clock_timestamp())
            .order_by(Job.priority, Job.id)
        )
        room = MOST_WAKES - redis.llen(queue)
        with engine.connect() as connection:
            jobs = connection.scalars(waiting.limit(max(room, 0))).all()
        for job_id in jobs:
            wake(celery, queue, job_id)


class Reconciler:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = make_engine(settings.database_url)
        self.store: BlobStore = open_store(settings.storage_url, self.engine)
        self.celery = make_celery(settings.redis_url)
        self.redis = Redis.from_url(settings.redis_url, socket_timeout=2, socket_connect_timeout=2)
        self.stop = threading.Event()

    def run(self) -> None:
        """Until `stop` is set, over a database or a Redis that is away for a while."""
        while not self.stop.is_set():
            try:
                with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as leader:
                    leader.detach()  # closed at the end, and the lock with it: in a pool it would be held for ever
                    self._lead(leader)
            except SQLAlchemyError:
                log.warning("the database does not answer", exc_info=True)
                self.stop.wait(self.settings.reconcile_seconds)

    def _lead(self, leader: Connection) -> None:
        """The lock lives as long as this connection does, so a round begins by using it."""
        lock = text("SELECT pg_try_advisory_lock(:key)")
        leading = False
        while not self.stop.is_set():
            if leading:
                leader.execute(text("SELECT 1"))
            else:
                leading = bool(leader.execute(lock, {"key": LEADER}).scalar())
            if leading:
                self.round()
            self.stop.wait(self.settings.reconcile_seconds)

    def round(self) -> None:
        take_back(self.engine, Job.lease_until < func.clock_timestamp())
        try:
            wake_again(self.engine, self.celery, self.redis)
        except RedisError:
            log.warning("Redis does not answer; workers look for jobs by themselves", exc_info=True)
        drop_outlived(self.engine, self.store)
        self.store.sweep(self.settings.staged_seconds)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    reconciler = Reconciler(get_settings())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: reconciler.stop.set())
    reconciler.run()


if __name__ == "__main__":
    main()
