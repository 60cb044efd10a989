"""Waiting for jobs without holding a database connection."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

from app.context import Caller
from app.jobs.repository import JobRepository

T = TypeVar("T")


async def wait_until(
    caller: Caller, job_id: UUID, seconds: float, look: Callable[[], Awaitable[T]], done: Callable[[T], bool]
) -> T:
    """Looks again at every change of the job until `done`, or until the time has passed; returns what was seen last."""
    deadline = asyncio.get_running_loop().time() + seconds
    with caller.services.watcher.watch(job_id) as changes:
        while True:
            seen = await look()
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or done(seen):
                return seen
            await changes.wait(left)


async def wait_for_inspection(caller: Caller, job_id: UUID, seconds: float) -> None:
    """Until an upload has been read, or is gone; at most `seconds`."""

    async def final() -> bool | None:
        async with caller.services.sessions() as session:
            return await JobRepository(session, caller.tenant_id).inspection_is_final(job_id)

    await wait_until(caller, job_id, seconds, final, lambda ended: ended is not False)
