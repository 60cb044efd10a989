"""Which workers are there, as they say themselves: a key in Redis that expires when they fall silent."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

PREFIX = "modelpress:worker:"


@dataclass(frozen=True)
class Presence:
    name: str
    queues: tuple[str, ...]
    sandbox: tuple[str, ...]
    """The rungs that hold there; empty until its runners are ready."""


def announce(redis: Redis, name: str, queues: Sequence[str], sandbox: Sequence[str], seconds: float) -> None:
    """For so many seconds."""
    presence = Presence(name, tuple(queues), tuple(sandbox))
    redis.set(PREFIX + name, json.dumps(asdict(presence)), px=int(seconds * 1000))


async def present(redis: AsyncRedis) -> list[Presence]:
    keys = [key async for key in redis.scan_iter(match=f"{PREFIX}*")]
    values = await redis.mget(keys) if keys else []
    found = [json.loads(value) for value in values if value is not None]
    return [Presence(item["name"], tuple(item["queues"]), tuple(item["sandbox"])) for item in found]
