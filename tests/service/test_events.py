"""The events of a job: a page, or a stream that can be resumed and that ends with the job."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from app.jobs import events
from tests.service.as_worker import Worker
from tests.service.conftest import Server, Uploads
from tests.service.examples import report

pytestmark = pytest.mark.anyio


async def test_a_page_goes_on_where_the_last_one_ended(
    client: httpx.AsyncClient, uploads: Uploads, worker: Worker
) -> None:
    job = await uploads.job()
    url = f"/v1/jobs/{job['id']}/events"
    first = (await client.get(url)).json()
    assert [(event["type"], event["data"]) for event in first["items"]] == [("status", {"status": "queued"})]
    worker.claim(job["id"])
    worker.progress(job["id"], "half_precision", 0.5)
    rest = (await client.get(url, params={"after": first["next_after"], "page_size": 1})).json()
    assert [event["data"] for event in rest["items"]] == [{"status": "running"}]
    nothing = (await client.get(url, params={"after": 10**12})).json()
    assert nothing == {"items": [], "next_after": 10**12}


async def test_nobody_elses_events(client: httpx.AsyncClient, stranger: httpx.AsyncClient, uploads: Uploads) -> None:
    job = await uploads.job()
    for headers in ({}, {"Accept": "text/event-stream"}):
        answer = await stranger.get(f"/v1/jobs/{job['id']}/events", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_stream_of_a_job_that_has_ended(client: httpx.AsyncClient, uploads: Uploads, worker: Worker) -> None:
    job = await uploads.job()
    worker.claim(job["id"])
    worker.fail(job["id"], "x", "y")
    await client.post(f"/v1/jobs/{job['id']}/retry")
    worker.claim(job["id"])
    worker.succeed(job["id"], report())
    url, stream = f"/v1/jobs/{job['id']}/events", {"Accept": "text/event-stream"}
    whole = parsed((await client.get(url, headers=stream)).text)
    statuses = [event["data"]["data"]["status"] for event in whole]
    assert statuses == ["queued", "running", "failed", "queued", "running", "succeeded"]
    rest = parsed((await client.get(url, headers=stream | {"Last-Event-ID": whole[3]["id"]})).text)
    assert rest == whole[4:]


@pytest.fixture
async def remote(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=30) as client:
        yield client


async def test_a_stream_follows_a_running_job_to_its_end(remote: httpx.AsyncClient, worker: Worker) -> None:
    job = await Uploads(remote, worker).job()
    lines: list[str] = []
    with anyio.fail_after(20):
        async with remote.stream(
            "GET", f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}
        ) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                lines.append(line)
                if '"status":"queued"' in line:
                    worker.claim(job["id"])
                if '"status":"running"' in line:
                    worker.progress(job["id"], "half_precision", 0.5)
                if '"fraction":0.5' in line:
                    worker.succeed(job["id"], report())
    seen = parsed("\n".join(lines))
    assert [event["event"] for event in seen] == ["status", "status", "progress", "status"]
    assert seen[-1]["data"]["data"] == {"status": "succeeded"}


async def test_a_quiet_stream_says_that_it_is_alive(
    client: httpx.AsyncClient, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    job = await uploads.job()
    texts: list[str] = []

    async def listen() -> None:
        texts.append((await client.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"})).text)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await anyio.sleep(0.3)
            await client.post(f"/v1/jobs/{job['id']}/cancel")
    assert texts[0].count(": still here") >= 2


def parsed(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.strip().splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found
