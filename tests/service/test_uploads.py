"""Uploads: what is kept, and what leaves nothing behind."""

from base64 import b64encode
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import anyio
import httpx
import pytest
import redis
from fastapi import FastAPI
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from app.db.tables import Blob, Dataset, Job, Model
from app.main import create_app
from app.settings import Settings
from tests.service.as_worker import Worker
from tests.service.conftest import client_of, until

pytestmark = pytest.mark.anyio

CONTENT = b"some bytes of a model"


def rows(engine: Engine) -> dict[str, int]:
    with Session(engine) as session:
        return {
            table.__tablename__: session.scalar(select(func.count()).select_from(table)) or 0
            for table in (Model, Dataset, Job, Blob)
        }


async def test_a_model_arrives_whole_and_waits_to_be_read(client: httpx.AsyncClient, engine: Engine) -> None:
    answer = await client.post("/v1/models", params={"filename": "Net é.onnx"}, content=CONTENT)

    assert answer.status_code == 201
    model = answer.json()
    assert answer.headers["location"] == f"/v1/models/{model['id']}"
    assert model["status"] == "processing"
    assert (model["name"], model["filename"], model["format"]) == ("Net é", "Net é.onnx", None)
    assert (model["size_bytes"], model["sha256"]) == (len(CONTENT), sha256(CONTENT).hexdigest())
    with Session(engine) as session:
        job = session.scalars(select(Job)).one()
    assert (job.kind, job.queue, job.status) == ("inspect_model", "ingest", "queued")


async def test_a_worker_is_woken(client: httpx.AsyncClient, app: FastAPI, settings: Settings) -> None:
    await client.post("/v1/datasets?filename=d.npz", content=CONTENT)
    await app.state.services.waker.settle()
    with redis.Redis.from_url(settings.redis_url) as queue:
        assert queue.llen("ingest") == 1


async def test_the_same_bytes_are_stored_once(client: httpx.AsyncClient, engine: Engine) -> None:
    for _ in range(2):
        assert (await client.post("/v1/models?filename=a.onnx", content=CONTENT)).status_code == 201
    assert rows(engine) == {"models": 2, "datasets": 0, "jobs": 2, "blobs": 1}


async def test_what_was_announced_is_checked(client: httpx.AsyncClient, engine: Engine) -> None:
    right = {"Repr-Digest": f"sha-512=:AAAA:, sha-256=:{b64encode(sha256(CONTENT).digest()).decode()}:"}
    wrong = {"Repr-Digest": f"sha-256=:{b64encode(bytes(32)).decode()}:"}
    garbled = {"Repr-Digest": "sha-256=abc"}
    url = "/v1/models?filename=a.onnx"

    assert (await client.post(url, content=CONTENT, headers=right)).status_code == 201
    for headers, code in ((wrong, "digest_mismatch"), (garbled, "malformed_request")):
        answer = await client.post(url, content=CONTENT + b"!", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert rows(engine)["models"] == rows(engine)["blobs"] == 1


async def test_an_empty_body_is_refused(client: httpx.AsyncClient, engine: Engine) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield

    for body in (b"", nothing()):
        answer = await client.post("/v1/datasets?filename=a.npz", content=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "empty_body")
    assert rows(engine) == {"models": 0, "datasets": 0, "jobs": 0, "blobs": 0}


async def test_a_body_above_the_limit_is_refused(app: FastAPI, client: httpx.AsyncClient, engine: Engine) -> None:
    app.state.services.settings.max_upload_bytes = 1000

    async def growing() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    for body in (b"x" * 1001, growing()):
        answer = await client.post("/v1/models?filename=a.onnx", content=body)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert rows(engine)["blobs"] == 0


async def test_a_disk_without_room_is_said_before_anything_is_sent(
    settings: Settings, api_key: str, tmp_path: Path, engine: Engine
) -> None:
    roomy = {"storage_url": f"file://{tmp_path}/blobs", "max_upload_bytes": 1 << 60}
    app = create_app(settings.model_copy(update=roomy))
    headers = {"Content-Length": str(1 << 59)}
    async with app.router.lifespan_context(app), client_of(app, api_key) as client:
        answer = await client.post("/v1/models?filename=a.onnx", content=CONTENT, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    assert rows(engine)["blobs"] == 0


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("/v1/models?filename=net.pkl", ".onnx, .pt2, .zip"),
        ("/v1/models?filename=net", ".safetensors, .pt, .pth"),
        ("/v1/datasets?filename=data.csv", ".npz, .safetensors, .parquet"),
    ],
)
async def test_other_files_are_refused(client: httpx.AsyncClient, url: str, accepted: str) -> None:
    answer = await client.post(url, content=CONTENT)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_format")
    assert accepted in answer.json()["detail"]


@pytest.mark.parametrize("header", [{"Content-Type": "multipart/form-data; boundary=x"}, {"Content-Encoding": "gzip"}])
async def test_only_the_files_own_bytes_are_taken(
    client: httpx.AsyncClient, engine: Engine, header: dict[str, str]
) -> None:
    answer = await client.post("/v1/models?filename=a.onnx", content=CONTENT, headers=header)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_format")
    assert rows(engine)["blobs"] == 0


@pytest.mark.parametrize("query", ["filename=a%00.onnx", "filename=a.onnx&name=%00", "filename=.onnx", "name=x", ""])
async def test_names_that_cannot_be_stored_are_refused(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.post(f"/v1/models?{query}", content=CONTENT)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"].startswith("query:")


async def test_a_path_in_a_filename_is_only_its_last_part(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/models", params={"filename": "../../etc/C:\\x\\net.onnx"}, content=CONTENT)
    assert answer.json()["filename"] == "net.onnx"


async def test_waiting_ends_when_the_upload_has_been_read(
    client: httpx.AsyncClient, app: FastAPI, api_key: str, worker: Worker
) -> None:
    model = (await client.post("/v1/models?filename=a.onnx", content=CONTENT)).json()
    async with client_of(app, api_key) as other, anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def wait() -> None:
            answers.append(await other.get(f"/v1/models/{model['id']}", headers={"Prefer": "wait=20"}))

        with anyio.fail_after(10):
            tasks.start_soon(wait)
            await until(lambda: app.state.services.watcher.waiting)
            worker.read_model(model["id"])
    assert answers[0].json()["status"] == "ready"
    assert answers[0].json()["format"] == "onnx"


async def test_a_rejected_model_says_why(client: httpx.AsyncClient, worker: Worker) -> None:
    model = (await client.post("/v1/models?filename=a.onnx", content=CONTENT)).json()
    worker.reject_model(model["id"], "not_onnx", "These bytes are no ONNX model.")
    shown = (await client.get(f"/v1/models/{model['id']}")).json()
    assert shown["status"] == "rejected"
    assert shown["error"] == {"code": "not_onnx", "message": "These bytes are no ONNX model."}
