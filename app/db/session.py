"""Engines for PostgreSQL: one driver, psycopg 3, sync for workers and storage, async for the service."""

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

DRIVER = "postgresql+psycopg"


def normalise(url: str) -> URL:
    """Accepts `postgres://` and `postgresql://` as hosting platforms write them. Raises ValueError for others."""
    parsed = make_url(url)
    if parsed.drivername not in {"postgres", "postgresql", DRIVER}:
        raise ValueError(f"DATABASE_URL must start with postgresql://, not {parsed.drivername}://")
    return parsed.set(drivername=DRIVER)


def make_engine(url: str, pool_size: int = 5) -> Engine:
    return create_engine(normalise(url), pool_size=pool_size, pool_pre_ping=True)


def make_async_engine(url: str, pool_size: int = 10) -> AsyncEngine:
    return create_async_engine(normalise(url), pool_size=pool_size, pool_pre_ping=True)
