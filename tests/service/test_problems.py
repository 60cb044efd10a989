"""Whatever goes wrong is a problem document, and never a 500 that tells of the inside."""

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from app.models import service as models_service
from tests.service.conftest import Uploads

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/models", 404, "not_found"),
        ("GET", "/v1/models/mdl_1", 404, "not_found"),
        ("GET", f"/v1/models/dst_{'0' * 32}", 404, "not_found"),
        ("GET", f"/v1/models/mdl_{'0' * 32}", 404, "not_found"),
        ("GET", f"/v1/models/mdl_{'0' * 32}/content", 404, "not_found"),
        ("DELETE", f"/v1/models/mdl_{'0' * 32}", 404, "not_found"),
        ("GET", f"/v1/datasets/dst_{'0' * 32}", 404, "not_found"),
        ("GET", f"/v1/jobs/job_{'0' * 32}", 404, "not_found"),
        ("GET", f"/v1/jobs/job_{'0' * 32}/events", 404, "not_found"),
        ("GET", f"/v1/jobs/job_{'0' * 32}/report", 404, "not_found"),
        ("GET", f"/v1/jobs/job_{'0' * 32}/log", 404, "not_found"),
        ("POST", f"/v1/jobs/job_{'0' * 32}/cancel", 404, "not_found"),
        ("POST", f"/v1/jobs/job_{'0' * 32}/retry", 404, "not_found"),
        ("GET", f"/v1/comparisons/cmp_{'0' * 32}", 404, "not_found"),
        ("DELETE", f"/v1/api-keys/key_{'0' * 32}", 404, "not_found"),
        ("GET", "/v1/steps/no_such_step", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/models?page_size=0", 422, "invalid"),
        ("GET", "/v1/models?page_size=101", 422, "invalid"),
        ("GET", "/v1/models?page_token=x", 422, "invalid"),
        ("GET", "/v1/models?page_token=%00%ff", 422, "invalid"),
        ("GET", "/v1/jobs?status=lost", 422, "invalid"),
        ("GET", "/v1/jobs?label=%00:x", 422, "invalid"),
        ("GET", f"/v1/jobs/job_{'0' * 32}/events?after=-1", 422, "invalid"),
        ("GET", f"/v1/jobs/job_{'0' * 32}/events?after=99999999999999999999", 422, "invalid"),
        ("GET", f"/v1/models/mdl_{'0' * 32}/content?format=%00", 422, "invalid"),
    ],
)
async def test_a_problem_says_what_it_is(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, path)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["status"]) == (status, code, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["type"] == f"urn:modelpress:problem:{code}"
    assert problem["detail"]
    if status == 405:
        assert answer.headers["allow"]


async def test_a_parameter_is_pointed_at(client: httpx.AsyncClient) -> None:
    errors = (await client.get("/v1/models?page_size=0")).json()["errors"]
    assert errors == [{"pointer": "query:page_size", "detail": "input should be greater than or equal to 1"}]


async def test_a_bug_tells_nothing_of_the_inside(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("the secret of the inside")

    monkeypatch.setattr(models_service, "page", broken)
    answer = await client.get("/v1/models", headers={"X-Request-Id": "abc"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "abc"
    assert "abc" in answer.json()["detail"]


@pytest.mark.parametrize("sent", ["", "a b", "x" * 65, "a\x7fb"])
async def test_a_request_id_that_is_not_harmless_is_replaced(client: httpx.AsyncClient, sent: str) -> None:
    answer = await client.get("/livez", headers={"X-Request-Id": sent})
    assert len(answer.headers["x-request-id"]) == 32


async def test_a_database_that_is_down_is_a_503(app: FastAPI, client: httpx.AsyncClient) -> None:
    nowhere = create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    app.state.services.sessions = async_sessionmaker(nowhere)
    answer = await client.get("/v1/models")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"]


class TestTenants:
    """What belongs to another tenant does not exist."""

    async def test_nothing_of_another_tenant_is_seen(
        self, client: httpx.AsyncClient, stranger: httpx.AsyncClient, uploads: Uploads
    ) -> None:
        dataset = await uploads.dataset()
        job = await uploads.job(data={"evaluate": dataset})
        key = (await client.post("/v1/api-keys", json={"name": "k"})).json()
        paths = [
            ("GET", f"/v1/models/{job['model']}"),
            ("GET", f"/v1/models/{job['model']}/content"),
            ("DELETE", f"/v1/models/{job['model']}"),
            ("GET", f"/v1/datasets/{dataset}"),
            ("GET", f"/v1/datasets/{dataset}/content"),
            ("DELETE", f"/v1/datasets/{dataset}"),
            ("GET", f"/v1/jobs/{job['id']}"),
            ("GET", f"/v1/jobs/{job['id']}/log"),
            ("POST", f"/v1/jobs/{job['id']}/cancel"),
            ("POST", f"/v1/jobs/{job['id']}/retry"),
            ("DELETE", f"/v1/api-keys/{key['id']}"),
        ]
        for method, path in paths:
            assert (await stranger.request(method, path)).status_code == 404, path
        for path in ("/v1/models", "/v1/datasets", "/v1/jobs"):
            assert (await stranger.get(path)).json()["items"] == []
            assert len((await client.get(path)).json()["items"]) == 1
        assert (await client.get(f"/v1/jobs/{job['id']}")).json()["status"] == "queued"

    async def test_nothing_of_another_tenant_is_used(self, stranger: httpx.AsyncClient, uploads: Uploads) -> None:
        model = await uploads.model()
        request = {"model": model, "recipe": [{"step": "half_precision"}]}
        assert (await stranger.post("/v1/jobs", json=request)).status_code == 404
        comparison = {"baseline": model, "candidates": [model]}
        assert (await stranger.post("/v1/comparisons", json=comparison)).status_code == 404

    async def test_the_same_bytes_are_kept_apart(self, client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
        for each in (client, stranger):
            assert (await each.post("/v1/models?filename=a.onnx", content=b"same")).status_code == 201
        theirs = (await stranger.get("/v1/models")).json()["items"][0]
        assert (await stranger.get(f"/v1/models/{theirs['id']}/content")).content == b"same"
