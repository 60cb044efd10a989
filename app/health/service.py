"""Looks at each part that the service stands on."""

import asyncio
from collections.abc import Awaitable

from anyio import to_thread
from redis.asyncio import Redis

from app.context import Services
from app.health.repository import HealthRepository
from app.health.schemas import Part, Readiness, Worker
from app.presence import present

SECONDS = 3.0
"""A part that takes longer to answer counts as down."""


async def readiness(services: Services) -> Readiness:
    workers: list[Worker] = []
    checks = {
        "database": _database(services),
        "redis": _redis(services, workers),
        "storage": to_thread.run_sync(services.blobs.check, abandon_on_cancel=True),
    }
    states = await asyncio.gather(*map(_part, checks.values()))
    return Readiness(
        status="ready" if all(state.status == "up" for state in states) else "not ready",
        parts=dict(zip(checks, states, strict=True)),
        workers=workers,
    )


async def metrics_page(services: Services) -> bytes:
    async with services.sessions() as session:
        return services.metrics.page(await HealthRepository(session).jobs_by_state())


async def _part(check: Awaitable[None]) -> Part:
    try:
        async with asyncio.timeout(SECONDS):
            await check
    except TimeoutError:
        return Part(status="down", detail=f"no answer within {SECONDS:g} s")
    except Exception as error:  # noqa: BLE001 - whatever it is, the part is down; addresses stay out of the answer
        return Part(status="down", detail=type(error).__name__)
    return Part(status="up")


async def _database(services: Services) -> None:
    async with services.sessions() as session:
        await HealthRepository(session).check()


async def _redis(services: Services, workers: list[Worker]) -> None:
    async with Redis.from_url(services.settings.redis_url) as redis:
        found = await present(redis)
    workers += [Worker(name=one.name, queues=list(one.queues), sandbox=list(one.sandbox)) for one in found]
