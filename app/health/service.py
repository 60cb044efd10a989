"""Looks at each part that the service stands on."""

import asyncio
from collections.abc import Awaitable, Callable

from anyio import to_thread

from app.context import Services
from app.health.repository import HealthRepository
from app.health.schemas import Part, Readiness

SECONDS = 3.0
"""A part that takes longer to answer counts as down."""


async def readiness(services: Services) -> Readiness:
    checks: dict[str, Callable[[Services], Awaitable[None]]] = {
        "database": _database,
        "redis": _redis,
        "storage": _storage,
    }
    states = await asyncio.gather(*(_part(check, services) for check in checks.values()))
    ready = all(state.status == "up" for state in states)
    return Readiness(status="ready" if ready else "not ready", parts=dict(zip(checks, states, strict=True)))


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
    from redis.asyncio import Redis  # noqa: PLC0415 - not needed to start

    async with Redis.from_url(services.settings.redis_url) as redis:
        await redis.ping()


async def _storage(services: Services) -> None:
    await to_thread.run_sync(services.blobs.check, abandon_on_cancel=True)
