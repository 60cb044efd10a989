"""Removing: bytes really go, and nothing that is needed does."""

import httpx
import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from app.db.tables import Blob, BlobChunk
from tests.service.as_worker import Worker
from tests.service.conftest import Uploads
from tests.service.examples import report

pytestmark = pytest.mark.anyio


def stored(engine: Engine) -> tuple[int, int]:
    with Session(engine) as session:
        count = [session.scalar(select(func.count()).select_from(table)) or 0 for table in (Blob, BlobChunk)]
    return count[0], count[1]


async def test_a_model_goes_with_its_bytes(client: httpx.AsyncClient, uploads: Uploads, engine: Engine) -> None:
    model = await uploads.model()
    assert stored(engine) == (1, 1)
    assert (await client.delete(f"/v1/models/{model}")).status_code == 204
    assert stored(engine) == (0, 0)
    assert (await client.get(f"/v1/models/{model}")).status_code == 404


async def test_bytes_that_another_model_has_too_stay(
    client: httpx.AsyncClient, uploads: Uploads, engine: Engine
) -> None:
    first, second = await uploads.model(), await uploads.model()
    await client.delete(f"/v1/models/{first}")
    assert (await client.get(f"/v1/models/{second}/content")).content == b"a model"
    assert stored(engine) == (1, 1)


async def test_bytes_that_are_a_dataset_too_stay(client: httpx.AsyncClient, uploads: Uploads, engine: Engine) -> None:
    model, dataset = await uploads.model(b"same"), await uploads.dataset(content=b"same")
    await client.delete(f"/v1/models/{model}")
    assert (await client.get(f"/v1/datasets/{dataset}/content")).content == b"same"
    await client.delete(f"/v1/datasets/{dataset}")
    assert stored(engine) == (0, 0)


async def test_a_model_that_is_being_read_stays(client: httpx.AsyncClient) -> None:
    model = (await client.post("/v1/models?filename=a.onnx", content=b"x")).json()["id"]
    assert (await client.delete(f"/v1/models/{model}")).json()["code"] == "in_use"


async def test_a_model_that_a_job_was_given_stays_but_its_result_can_go(
    client: httpx.AsyncClient, uploads: Uploads, worker: Worker
) -> None:
    job = await uploads.job()
    worker.claim(job["id"])
    result = worker.succeed(job["id"], report())
    assert (await client.delete(f"/v1/models/{job['model']}")).json()["code"] == "in_use"
    assert (await client.delete(f"/v1/models/{result}")).status_code == 204
    after = (await client.get(f"/v1/jobs/{job['id']}")).json()
    assert (after["status"], after["result"], after["report"]["verdict"]) == ("succeeded", None, "passed")
