"""A worker: lanes with a few slots each, that take jobs from the database until none waits, woken or by themselves."""

import logging
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_hex

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from app.db.session import make_engine
from app.db.tables import Job
from app.presence import announce
from app.settings import Settings
from app.storage import open_store
from workers import machine
from workers.lease import Shutdown
from workers.ownership import claim, some_wait
from workers.pool import Pool
from workers.run_directory import Scratch
from workers.supervisor import Supervisor
from workers.takeover import take_back

log = logging.getLogger(__name__)

INGEST = "ingest"


@dataclass
class Lane:
    """Queues that share slots. Uploads have a lane of their own, so that they are read while a long job runs."""

    queues: tuple[str, ...]
    supervisor: Supervisor
    slots: threading.Semaphore
    again: threading.Event = field(default_factory=threading.Event)
    """Somebody looked while all slots were taken: whoever frees one must look once more."""


def slots(settings: Settings) -> int:
    return settings.worker_slots or max(1, machine.cores() // 4)


class Worker:
    def __init__(self, settings: Settings, queues: Sequence[str], pool: Pool | None = None) -> None:
        self.settings = settings
        host = socket.gethostname()
        self.name = f"{host}:{os.getpid()}:{token_hex(4)}"
        self.shutdown = Shutdown(settings.shutdown_seconds)
        heavy = slots(settings)
        threads = heavy + settings.ingest_slots
        self.engine = make_engine(settings.database_url, pool_size=3 * threads + 2)
        self.redis = Redis.from_url(settings.redis_url, socket_timeout=2, socket_connect_timeout=2)
        self.scratch = Scratch(settings.scratch or settings.home / "scratch", self.name)
        self._predecessors = [name for name in self.scratch.left if name.startswith(f"{host}:")]
        self.pool = pool or Pool(spares=threads)
        self.lanes = [
            self._lane(tuple(queue for queue in queues if queue != INGEST), heavy, max(1, machine.cores() // heavy)),
            self._lane(tuple(queue for queue in queues if queue == INGEST), settings.ingest_slots, 1),
        ]
        self._threads: list[threading.Thread] = []
        self._poller = threading.Thread(target=self._poll, name="poll", daemon=True)

    def _lane(self, queues: tuple[str, ...], slots: int, threads: int) -> Lane:
        memory_bytes = self.settings.runner_memory_bytes or machine.share_of_memory(slots)
        store = open_store(self.settings.storage_url, self.engine)
        supervisor = Supervisor(
            self.settings, self.engine, store, self.pool, self.scratch, self.shutdown, threads, memory_bytes
        )
        return Lane(queues, supervisor, threading.Semaphore(slots))

    def start(self) -> None:
        self._inherit()
        self.pool.start()
        self._poller.start()

    def _inherit(self) -> None:
        """Workers that died on this machine cannot come back to their jobs: nobody need wait for the leases."""
        try:
            take_back(self.engine, Job.worker.in_(self._predecessors))
        except SQLAlchemyError:
            log.warning("the database does not answer; lost jobs wait for their leases to end", exc_info=True)

    def stop(self) -> None:
        """Nothing new begins from here on; what runs has `shutdown_seconds` left. Returns at once."""
        self.shutdown.begin()

    def close(self) -> None:
        """Waits for what runs, and ends the runners."""
        self.stop()
        self._poller.join()
        for thread in self._threads:
            thread.join()
        self.pool.close()
        self.scratch.close()
        self.engine.dispose()
        self.redis.close()

    def look(self, queue: str) -> None:
        """Take jobs of this queue's lane until none waits; at once nothing where all its slots are at work."""
        lane = next((lane for lane in self.lanes if queue in lane.queues), None)
        if lane is None:
            log.warning("woken for the queue %s, which is not one of ours", queue)
            return
        lane.again.set()
        while lane.again.is_set() and lane.slots.acquire(blocking=False):
            try:
                lane.again.clear()
                self._work_off(lane)
            finally:
                lane.slots.release()

    def _work_off(self, lane: Lane) -> None:
        while not self.shutdown.begun.is_set() and self._runners_ready():
            try:
                claimed = claim(self.engine, lane.queues, self.name, self.settings.lease_seconds)
                if claimed is None:
                    return
                lane.supervisor.attempt(claimed)
            except Exception:
                # The job, if there is one, is taken back when its lease ends; polling goes on when the cause has gone.
                log.exception("looking for jobs failed")
                return

    def _runners_ready(self) -> bool:
        """Waits for the engine to be loaded, so that no attempt is spent on a worker that cannot run it."""
        while not self.pool.ready.wait(0.1):
            if self.shutdown.begun.is_set():
                return False
        return True

    def _poll(self) -> None:
        """Finds work that no message told of, and tells that we are here."""
        while not self.shutdown.begun.is_set():
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            try:
                self._announce()
                for lane in self.lanes:
                    if lane.queues and some_wait(self.engine, lane.queues):
                        thread = threading.Thread(target=self.look, args=(lane.queues[0],), name="polled")
                        self._threads.append(thread)
                        thread.start()
            except SQLAlchemyError:
                log.warning("the database does not answer", exc_info=True)
            self.shutdown.begun.wait(self.settings.poll_seconds)

    def _announce(self) -> None:
        queues = [queue for lane in self.lanes for queue in lane.queues]
        try:
            announce(self.redis, self.name, queues, self.pool.sandbox, 3 * self.settings.poll_seconds)
        except RedisError:
            log.warning("Redis does not answer; we look for jobs by ourselves", exc_info=True)
