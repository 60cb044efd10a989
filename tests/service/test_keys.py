"""API keys: shown once, looked up by their HMAC, gone when revoked."""

from datetime import UTC, datetime

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.db.tables import ApiKey, Tenant
from app.main import create_app
from app.settings import Settings
from tests.service.conftest import client_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer mp_wrong"}, {"Authorization": "Basic eDp5"}, {"X-API-Key": "mp_x"}]
)
async def test_nothing_without_a_key(app: FastAPI, headers: dict[str, str]) -> None:
    async with client_of(app, "x") as client:
        del client.headers["Authorization"]
        answer = await client.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == 'Bearer realm="modelpress"'


async def test_a_key_opens_the_door_until_it_is_revoked(app: FastAPI, client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/api-keys", json={"name": "laptop"})
    assert answer.status_code == 201
    created = answer.json()
    assert created["key"].startswith(created["prefix"])
    async with client_of(app, created["key"]) as laptop:
        assert (await laptop.get("/v1/models")).status_code == 200
        assert (await client.delete(f"/v1/api-keys/{created['id']}")).status_code == 204
        assert (await client.delete(f"/v1/api-keys/{created['id']}")).status_code == 204
        assert (await laptop.get("/v1/models")).status_code == 401
    listed = (await client.get("/v1/api-keys")).json()["items"]
    assert [key["name"] for key in listed] == ["laptop", "tests"]
    assert listed[0]["revoked_at"]
    assert listed[1]["last_used_at"]
    assert all("key" not in key for key in listed)


async def test_the_other_header(client: httpx.AsyncClient) -> None:
    key = client.headers.pop("Authorization").removeprefix("Bearer ")
    assert (await client.get("/v1/models", headers={"X-API-Key": key})).status_code == 200


async def test_a_key_is_not_stored(client: httpx.AsyncClient, engine: Engine) -> None:
    created = (await client.post("/v1/api-keys", json={"name": "x"})).json()
    with Session(engine) as session:
        row = session.scalars(select(ApiKey).order_by(ApiKey.id.desc())).first()
    assert row
    assert len(row.digest) == 32
    assert created["key"] not in repr(vars(row))


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "x" * 256}, {"name": "\0"}, {"name": "x", "admin": True}])
async def test_a_key_needs_a_name_and_nothing_else(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    assert (await client.post("/v1/api-keys", json=body)).status_code == 422


async def test_the_first_key_comes_from_the_settings(settings: Settings, engine: Engine) -> None:
    first = settings.model_copy(update={"api_key": "a key that the owner chose"})
    for _ in range(2):  # every start finds it again
        app = create_app(first)
        async with app.router.lifespan_context(app), client_of(app, "a key that the owner chose") as client:
            assert (await client.get("/v1/models")).status_code == 200
    with Session(engine) as session:
        assert [tenant.name for tenant in session.scalars(select(Tenant))] == ["default"]
        key = session.scalars(select(ApiKey)).one()
    assert key.last_used_at
    assert key.last_used_at <= datetime.now(UTC)
