"""Tells whoever waits for a job that it changed. One LISTEN connection a process serves all of them."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg

from app.db.session import normalise

CHANNEL = "modelpress_jobs"
SAFETY_SECONDS = 3.0
"""Nobody waits longer than this for a notification before looking at the row."""
RECONNECT_SECONDS = 1.0

log = logging.getLogger(__name__)


class Changes:
    """The news of one job for one waiter."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def announce(self) -> None:
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Until something may have changed; at most `seconds`, and at most `SAFETY_SECONDS`."""
        try:
            async with asyncio.timeout(min(seconds, SAFETY_SECONDS)):
                await self._event.wait()
        except TimeoutError:
            return
        self._event.clear()


class JobWatcher:
    def __init__(self, database_url: str) -> None:
        self._url = normalise(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        self.waiting: dict[UUID, set[Changes]] = {}

    @contextmanager
    def watch(self, job_id: UUID) -> Iterator[Changes]:
        """Enter before reading the row: a change after that is never missed."""
        changes = Changes()
        self.waiting.setdefault(job_id, set()).add(changes)
        try:
            yield changes
        finally:
            waiting = self.waiting[job_id]
            waiting.discard(changes)
            if not waiting:
                del self.waiting[job_id]

    async def run(self) -> None:
        """Listens until it is cancelled, over lost connections."""
        while True:
            try:
                await self._listen()
            except psycopg.Error as error:
                log.warning("not listening to the database, trying again: %s", error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            self._announce_all()  # something may have happened while nobody listened
            async for notification in connection.notifies():
                self._announce(notification.payload)

    def _announce(self, payload: str) -> None:
        try:
            waiting = self.waiting.get(UUID(payload), set())
        except ValueError:
            log.warning("a notification that names no job: %r", payload)
            return
        for changes in waiting:
            changes.announce()

    def _announce_all(self) -> None:
        for waiting in self.waiting.values():
            for changes in waiting:
                changes.announce()
