"""Looks at each part that the service stands on."""

import asyncio
from collections.abc import Awaitable, Callable

from anyio import to_thread
from redis.asyncio import Redis

from app.context import Services
from app.health.repository import HealthRepository
from app.health.schemas import Part, Readiness, Worker
from app.presence import present

SECONDS = 3.0
"""A part that takes longer to answer counts as down."""


async def readiness(services: Services) -> Readiness:
    checks: dict[str, Callable[[Services], Awaitable[None]]] = {
        "database": _database,
        "redis": _redis,
        "storage": _storage,
    }
    states = await asyncio.gather(*(_part(check, services) for check in checks.values()))
    parts = dict(zip(checks, states, strict=True))
    return Readiness(
        status="ready" if all(part.status == "up" for part in states) else "not ready",
        parts=parts,
        workers=await _workers(services) if parts["redis"].status == "up" else [],
    )


async def metrics_page(services: Services) -> bytes:
    async with services.sessions() as session:
        return services.metrics.page(await HealthRepository(session).jobs_by_state())


async def _part(check: Callable[[Services], Awaitable[None]], services: Services) -> Part:
    try:
        async with asyncio.timeout(SECONDS):
            await check(services)
    except TimeoutError:
        return Part(status="down", detail=f"no answer within {SECONDS:g} s")
    except Exception as error:  # noqa: BLE001 - whatever it is, the part is down; addresses stay out of the answer
        return Part(status="down", detail=type(error).__name__)
    return Part(status="up")


async def _database(services: Services) -> None:
    async with services.sessions() as session:
        await HealthRepository(session).check()


async def _redis(services: Services) -> None:
    async with Redis.from_url(services.settings.redis_url) as redis:
        await redis.ping()


async def _workers(services: Services) -> list[Worker]:
    async with Redis.from_url(services.settings.redis_url) as redis:
        found = await present(redis)
    return [Worker(name=one.name, queues=list(one.queues), sandbox=list(one.sandbox)) for one in found]


async def _storage(services: Services) -> None:
    await to_thread.run_sync(services.blobs.check, abandon_on_cancel=True)
