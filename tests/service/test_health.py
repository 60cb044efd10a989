"""What a platform asks a service."""

from pathlib import Path

import httpx
import pytest
import redis
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from app.main import create_app
from app.presence import announce
from app.settings import Settings
from modelpress import __version__
from tests.service.conftest import Uploads, client_of

pytestmark = pytest.mark.anyio


async def test_alive_and_ready_without_a_key(client: httpx.AsyncClient) -> None:
    del client.headers["Authorization"]
    assert (await client.get("/livez")).json() == {"status": "alive"}
    assert (await client.get("/version")).json() == {"version": __version__, "api": "v1"}
    answer = await client.get("/readyz")
    assert answer.status_code == 200, answer.text
    assert {name: part["status"] for name, part in answer.json()["parts"].items()} == {
        "database": "up",
        "redis": "up",
        "storage": "up",
    }


async def test_workers_that_say_so_are_listed(client: httpx.AsyncClient, redis_url: str) -> None:
    assert (await client.get("/readyz")).json()["workers"] == []
    with redis.Redis.from_url(redis_url) as connection:
        announce(connection, "here:1", ["cpu", "ingest"], ["landlock"], 30)
    expected = {"name": "here:1", "queues": ["cpu", "ingest"], "sandbox": ["landlock"]}
    assert (await client.get("/readyz")).json()["workers"] == [expected]


async def test_readiness_says_what_is_down(app: FastAPI, client: httpx.AsyncClient) -> None:
    services = app.state.services
    services.settings.redis_url = "redis://127.0.0.1:1/0"
    services.sessions = async_sessionmaker(create_async_engine("postgresql+psycopg://x@127.0.0.1:1/x"))
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    parts = answer.json()["parts"]
    assert (parts["redis"]["status"], parts["database"]["status"], parts["storage"]["status"]) == ("down", "down", "up")
    assert "127.0.0.1" not in answer.text


async def test_a_storage_folder_that_is_gone_is_down(settings: Settings, api_key: str, tmp_path: Path) -> None:
    folder = tmp_path / "blobs"
    app = create_app(settings.model_copy(update={"storage_url": f"file://{folder}"}))
    async with app.router.lifespan_context(app), client_of(app, api_key) as client:
        assert (await client.get("/readyz")).status_code == 200
        folder.rmdir()
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["parts"]["storage"]["status"]) == (503, "down")


async def test_metrics_count_requests_and_jobs(client: httpx.AsyncClient, uploads: Uploads) -> None:
    job = await uploads.job()
    await client.get(f"/v1/jobs/{job['id']}")
    await client.get("/nowhere")
    text = (await client.get("/metrics")).text
    assert 'modelpress_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"} 1.0' in text
    assert 'modelpress_http_requests_total{method="GET",route="unknown",status="404"} 1.0' in text
    assert 'modelpress_jobs{kind="compress",status="queued"} 1.0' in text
    assert 'modelpress_jobs{kind="inspect_model",status="succeeded"} 1.0' in text
