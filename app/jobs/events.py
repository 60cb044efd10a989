"""The events of a job: one table, as a JSON page or as a stream (Server-Sent Events) that ends with the job."""

import time
from collections.abc import AsyncIterator
from uuid import UUID

from app.context import Caller
from app.db.tables import JobEvent as EventRow
from app.jobs.repository import JobRepository
from app.jobs.schemas import EventPage, JobEvent
from app.problems import NotFound

BATCH = 200
HEARTBEAT_SECONDS = 15.0


async def page(caller: Caller, job_id: UUID, after: int, size: int) -> EventPage:
    _, rows = await _read(caller, job_id, after, size)
    return EventPage(items=[shown(row) for row in rows], next_after=rows[-1].id if rows else after)


async def opened(caller: Caller, job_id: UUID, after: int) -> AsyncIterator[str]:
    """The stream. Raises NotFound before it begins."""
    await _read(caller, job_id, after, 1)
    return _stream(caller, job_id, after)


async def _stream(caller: Caller, job_id: UUID, after: int) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    spoke = time.monotonic()
    with caller.services.watcher.watch(job_id) as changes:
        while True:
            try:
                final, rows = await _read(caller, job_id, after, BATCH)
            except NotFound:
                return  # removed while it was being watched
            for row in rows:
                yield f"id: {row.id}\nevent: {row.type}\ndata: {shown(row).model_dump_json()}\n\n"
                after = row.id
                spoke = time.monotonic()
            if rows:
                continue
            if final:
                return
            if time.monotonic() - spoke >= HEARTBEAT_SECONDS:
                yield ": still here\n\n"
                spoke = time.monotonic()
            await changes.wait(HEARTBEAT_SECONDS)


async def _read(caller: Caller, job_id: UUID, after: int, size: int) -> tuple[bool, list[EventRow]]:
    """Whether the job has ended, and events. The state is read first: its last event is committed with it."""
    async with caller.services.sessions() as session:
        jobs = JobRepository(session, caller.tenant_id)
        final = await jobs.is_final(job_id)
        if final is None:
            raise NotFound("There is no such job.")
        return final, await jobs.events(job_id, after, size)


def shown(row: EventRow) -> JobEvent:
    return JobEvent.model_validate(row, from_attributes=True)
