import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import psutil
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.auth_keys import digest, new_key, prefix
from app.db.tables import ApiKey, Tenant
from app.main import create_app
from app.settings import Settings
from app.storage.base import BlobStore
from tests.service.as_worker import Worker
from tests.service.examples import CLASSIFIER, LABELLED


@pytest.fixture
async def app(anyio_backend: str, settings: Settings) -> AsyncIterator[FastAPI]:
    application = create_app(settings)
    async with application.router.lifespan_context(application):
        yield application


@pytest.fixture
async def client(app: FastAPI, api_key: str) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks to the service in this process, with a key of `tenant`."""
    async with client_of(app, api_key) as client:
        yield client


@pytest.fixture
async def stranger(app: FastAPI, engine: Engine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The same service, with the key of another tenant."""
    key = new_key()
    with Session(engine) as session:
        tenant = Tenant(name="another")
        session.add(tenant)
        session.flush()
        stored = digest(settings.secret, key)
        session.add(ApiKey(tenant_id=tenant.id, name="theirs", prefix=prefix(key), digest=stored))
        session.commit()
    async with client_of(app, key) as client:
        yield client


def client_of(app: FastAPI, key: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers)


@pytest.fixture
def worker(engine: Engine, store: BlobStore) -> Worker:
    return Worker(engine, store)


@dataclass
class Uploads:
    """Uploads that have been read, so that jobs can use them."""

    client: httpx.AsyncClient
    worker: Worker

    async def model(self, content: bytes = b"a model", spec: Any = CLASSIFIER) -> str:
        answer = await self.client.post("/v1/models?filename=net.onnx", content=content)
        assert answer.status_code == 201, answer.text
        self.worker.read_model(answer.json()["id"], spec)
        return answer.json()["id"]

    async def dataset(self, spec: Any = LABELLED, content: bytes = b"data") -> str:
        answer = await self.client.post("/v1/datasets?filename=data.npz", content=content)
        assert answer.status_code == 201, answer.text
        self.worker.read_dataset(answer.json()["id"], spec)
        return answer.json()["id"]

    async def job(self, **fields: Any) -> dict[str, Any]:
        model = fields.pop("model", None) or await self.model()
        request = {"model": model, "recipe": [{"step": "half_precision"}], **fields}
        answer = await self.client.post("/v1/jobs", json=request)
        assert answer.status_code == 202, answer.text
        return answer.json()


@pytest.fixture
def uploads(client: httpx.AsyncClient, worker: Worker) -> Uploads:
    return Uploads(client, worker)


@dataclass
class Server:
    """The service as it runs for users: uvicorn, in a process of its own."""

    url: str
    process: psutil.Process
    headers: dict[str, str]
    started_in: float

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=30)

    @property
    def memory(self) -> int:
        return self.process.memory_info().rss


@pytest.fixture
def server(settings: Settings, api_key: str) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "STORAGE_URL": settings.storage_url,
        "MODELPRESS_SECRET": settings.secret,
        "MODELPRESS_HOME": str(settings.home),
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app", "--port", str(port)]
    begin = time.monotonic()
    with subprocess.Popen([*command, "--log-level", "warning"], env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for_answer(url, process)
            headers = {"Authorization": f"Bearer {api_key}"}
            yield Server(url, psutil.Process(process.pid), headers, time.monotonic() - begin)
        finally:
            process.terminate()
            process.wait(timeout=20)


def wait_for_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service ended at once"
        try:
            httpx.get(f"{url}/livez")
        except httpx.ConnectError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("the service did not start")


async def until(condition: Callable[[], object]) -> None:
    """Callers set the deadline."""
    while not condition():  # noqa: ASYNC110 - what is waited for knows no events
        await anyio.sleep(0.005)
