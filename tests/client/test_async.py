"""The asynchronous client: the same things, awaited."""

import hashlib
from pathlib import Path

import pytest

from modelpress import AsyncClient, Client, ModelpressError
from modelpress.client import Job, Model
from tests.client.cutting_proxy import CuttingProxy
from tests.service_process import EXAMPLE, Service

pytestmark = pytest.mark.anyio


async def test_from_upload_to_download(service: Service, tmp_path: Path) -> None:
    async with AsyncClient(service.url, service.api_key) as client:
        model = await client.wait(await client.upload_model(EXAMPLE / "lenet5.onnx"), timeout=180)
        job = await client.create_job(model.id, [{"step": "half_precision"}])
        statuses = [event.data["status"] async for event in client.events(job.id) if event.type == "status"]
        assert statuses == ["queued", "running", "succeeded"]
        seen: list[Job] = []
        job = await client.wait_job(job.id, seen.append, timeout=180)
        assert seen[-1] == job
        assert job.result is not None
        assert await client.report(job.id) == job.report
        path = await client.download(job.result.model_id, tmp_path / "small.onnx")
        small = await client.get_model(job.result.model_id)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == small.sha256
        assert small.id in {each.id async for each in client.iterate_models()}
        comparison = await client.compare(model.id, [small.id])
        assert comparison.candidates[0].model_id == small.id


async def test_broken_connections_are_taken_up_again(
    service: Service, halved: Job, lenet: Model, tmp_path: Path
) -> None:
    async with AsyncClient(service.url, service.api_key) as client:
        whole = [event async for event in client.events(halved.id)]
    with CuttingProxy(service.url, 700, 400) as proxy:
        async with AsyncClient(proxy.url, service.api_key) as client:
            assert [event async for event in client.events(halved.id)] == whole
    with CuttingProxy(service.url, 100_000) as proxy:
        async with AsyncClient(proxy.url, service.api_key) as client:
            path = await client.download(lenet.id, tmp_path / "model.onnx")
    assert path.read_bytes() == (EXAMPLE / "lenet5.onnx").read_bytes()


async def test_a_problem_is_raised(service: Service) -> None:
    async with AsyncClient(service.url, service.api_key) as client:
        with pytest.raises(ModelpressError) as caught:
            await client.get_job("job_" + "0" * 32)
    assert caught.value.code == "not_found"


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(AsyncClient) - {"aclose"} == methods(Client) - {"close"}
