"""Weights that are uploaded alone: they name the model whose layers they are for, and it stays as long as they do."""

from collections.abc import AsyncIterator

import httpx
import pytest

from app.models import architecture
from tests.service.as_worker import Worker
from tests.service.conftest import Uploads

pytestmark = pytest.mark.anyio


async def weights(client: httpx.AsyncClient, on: str, filename: str = "epoch9.pt") -> httpx.Response:
    query = {"filename": filename, "architecture": on}
    return await client.post("/v1/models", params=query, content=b"weights")


async def test_weights_are_read_with_the_architecture_that_they_name(
    client: httpx.AsyncClient, uploads: Uploads
) -> None:
    whole = await uploads.model()
    answer = await weights(client, whole)
    assert answer.status_code == 201
    assert answer.json()["architecture_id"] == whole
    assert (await client.get(f"/v1/models/{answer.json()['id']}")).json()["architecture_id"] == whole
    assert (await client.get(f"/v1/models/{whole}")).json()["architecture_id"] is None


async def test_weights_on_weights_have_the_architecture_of_those(
    client: httpx.AsyncClient, uploads: Uploads, worker: Worker
) -> None:
    whole = await uploads.model()
    first = (await weights(client, whole)).json()["id"]
    worker.read_model(first)
    assert (await weights(client, first)).json()["architecture_id"] == whole


async def test_an_architecture_stays_while_weights_need_it(
    client: httpx.AsyncClient, uploads: Uploads, worker: Worker
) -> None:
    whole = await uploads.model()
    needing = (await weights(client, whole)).json()["id"]
    worker.read_model(needing)
    refused = await client.delete(f"/v1/models/{whole}")
    assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
    assert "architecture" in refused.json()["detail"]
    assert (await client.delete(f"/v1/models/{needing}")).status_code == 204
    assert (await client.delete(f"/v1/models/{whole}")).status_code == 204


async def test_an_architecture_that_goes_while_the_weights_arrive(client: httpx.AsyncClient, uploads: Uploads) -> None:
    whole = await uploads.model()

    async def body() -> AsyncIterator[bytes]:
        yield b"half of"
        assert (await client.delete(f"/v1/models/{whole}")).status_code == 204
        yield b" the weights"

    query = {"filename": "epoch9.pt", "architecture": whole}
    answer = await client.post("/v1/models", params=query, content=body())
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (404, "query:architecture")
    assert (await client.get("/v1/models")).json()["items"] == []


async def test_what_another_tenant_has_is_not_there(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, uploads: Uploads
) -> None:
    whole = await uploads.model()
    theirs, nothing = await weights(stranger, whole), await weights(client, "mdl_" + "0" * 32)
    assert (theirs.status_code, theirs.json()["errors"]) == (404, nothing.json()["errors"])


async def test_an_architecture_has_to_be_read_first(
    client: httpx.AsyncClient, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architecture, "READING_SECONDS", 0.1)
    whole = (await client.post("/v1/models?filename=a.onnx", content=b"x")).json()["id"]
    early = await weights(client, whole)
    assert (early.status_code, early.json()["code"]) == (409, "not_ready")
    worker.reject_model(whole, "invalid_model", "These bytes are no ONNX model.")
    late = await weights(client, whole)
    assert (late.status_code, late.json()["code"]) == (409, "rejected")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("filename=a.safetensors", "need a model with their architecture"),
        ("filename=a.onnx&architecture={whole}", "has an architecture of its own"),
        ("filename=a.zip&architecture={whole}", "has an architecture of its own"),
        ("filename=a.pt&architecture=dst_1", "mdl_"),
    ],
)
async def test_file_and_architecture_go_together(
    client: httpx.AsyncClient, uploads: Uploads, query: str, said: str
) -> None:
    url = f"/v1/models?{query.format(whole=await uploads.model())}"
    answer = await client.post(url, content=b"x")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "query:architecture"
    assert said in answer.json()["errors"][0]["detail"]
