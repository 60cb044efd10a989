"""A job from queued to its end, as a client sees it, with a worker played by SQL."""

from datetime import UTC, datetime
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from app import ids
from app.db.tables import Job, JobEvent
from tests.service.as_worker import Worker
from tests.service.conftest import Uploads, client_of, until
from tests.service.examples import report

pytestmark = pytest.mark.anyio


def statuses(engine: Engine, job: dict[str, Any]) -> list[str]:
    with Session(engine) as session:
        of_job = (JobEvent.job_id == ids.parse(ids.JOB, job["id"]), JobEvent.type == "status")
        return [data["status"] for data in session.scalars(select(JobEvent.data).where(*of_job).order_by(JobEvent.id))]


async def test_a_job_that_succeeds(client: httpx.AsyncClient, uploads: Uploads, worker: Worker) -> None:
    job = await uploads.job()
    worker.claim(job["id"])
    worker.progress(job["id"], "half_precision", 0.5)
    running = (await client.get(f"/v1/jobs/{job['id']}")).json()
    assert (running["status"], running["attempt"], running["progress"]["fraction"]) == ("running", 1, 0.5)

    result = worker.succeed(job["id"], report(size=1000))
    done = (await client.get(f"/v1/jobs/{job['id']}")).json()
    assert done["status"] == "succeeded"
    assert done["result"] == {"model_id": result, "verdict": "passed", "targets_met": None}
    assert done["progress"]["fraction"] == 1
    assert done["report"]["size_ratio"] == 4.0
    assert done["environment"]["cpu"] == "A CPU"
    assert (await client.get(f"/v1/jobs/{job['id']}/report")).json() == done["report"]

    model = (await client.get(f"/v1/models/{result}")).json()
    assert (model["status"], model["parent_id"], model["job_id"]) == ("ready", job["model"], job["id"])
    assert (await client.get(f"/v1/models/{result}/content?format=onnx")).content == b"a smaller model"
    listed = (await client.get("/v1/jobs")).json()["items"]
    assert listed[0]["result"] == done["result"]
    assert "report" not in listed[0]


async def test_times_are_utc(client: httpx.AsyncClient, uploads: Uploads, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER ROLE CURRENT_USER SET TimeZone = 'Asia/Kolkata'")
    try:
        job = await uploads.job()
        assert job["created_at"].endswith("Z")
        created = datetime.fromisoformat(job["created_at"])
        assert abs((datetime.now(UTC) - created).total_seconds()) < 60
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER ROLE CURRENT_USER RESET TimeZone")


async def test_a_job_that_fails_says_why_as_a_problem(
    client: httpx.AsyncClient, uploads: Uploads, worker: Worker
) -> None:
    job = await uploads.job()
    worker.claim(job["id"])
    worker.fail(job["id"], "out_of_memory", "The runner needed more than 2 GB.")
    failed = (await client.get(f"/v1/jobs/{job['id']}")).json()
    assert failed["status"] == "failed"
    assert failed["error"] == {
        "type": "urn:modelpress:problem:out_of_memory",
        "title": "Job failed",
        "code": "out_of_memory",
        "detail": "The runner needed more than 2 GB.",
        "retryable": True,
    }
    assert (await client.get(f"/v1/jobs/{job['id']}/report")).status_code == 404


async def test_the_log_is_text(client: httpx.AsyncClient, uploads: Uploads, engine: Engine) -> None:
    job = await uploads.job()
    url = f"/v1/jobs/{job['id']}/log"
    assert (await client.get(url)).text == ""
    with Session(engine) as session:
        session.execute(update(Job).where(Job.id == ids.parse(ids.JOB, job["id"])).values(log="line 1\nline 2"))
        session.commit()
    answer = await client.get(url)
    assert (answer.text, answer.headers["content-type"]) == ("line 1\nline 2", "text/plain; charset=utf-8")


class TestCancel:
    async def test_a_queued_job_ends_at_once(self, client: httpx.AsyncClient, uploads: Uploads, engine: Engine) -> None:
        job = await uploads.job()
        for _ in range(2):
            canceled = (await client.post(f"/v1/jobs/{job['id']}/cancel")).json()
            assert canceled["status"] == "canceled"
            assert canceled["finished_at"]
        assert statuses(engine, job) == ["queued", "canceled"]

    async def test_a_running_job_is_asked_to_stop(
        self, client: httpx.AsyncClient, uploads: Uploads, worker: Worker, engine: Engine
    ) -> None:
        job = await uploads.job()
        worker.claim(job["id"])
        for _ in range(2):
            assert (await client.post(f"/v1/jobs/{job['id']}/cancel")).json()["status"] == "canceling"
        worker.stop(job["id"])
        assert (await client.post(f"/v1/jobs/{job['id']}/cancel")).json()["status"] == "canceled"
        assert statuses(engine, job) == ["queued", "running", "canceling", "canceled"]

    async def test_a_job_that_has_ended_stays_as_it_is(
        self, client: httpx.AsyncClient, uploads: Uploads, worker: Worker
    ) -> None:
        job = await uploads.job()
        worker.claim(job["id"])
        worker.succeed(job["id"], report())
        answer = await client.post(f"/v1/jobs/{job['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")


class TestRetry:
    async def test_a_failed_job_is_queued_again(
        self, client: httpx.AsyncClient, uploads: Uploads, worker: Worker, engine: Engine
    ) -> None:
        job = await uploads.job()
        worker.claim(job["id"])
        worker.fail(job["id"], "worker_lost", "The worker was lost.")
        for _ in range(2):
            again = (await client.post(f"/v1/jobs/{job['id']}/retry")).json()
            assert (again["status"], again["error"], again["finished_at"]) == ("queued", None, None)
        worker.claim(job["id"])
        assert (await client.get(f"/v1/jobs/{job['id']}")).json()["attempt"] == 2
        assert statuses(engine, job) == ["queued", "running", "failed", "queued", "running"]

    async def test_it_has_attempts_again(self, client: httpx.AsyncClient, uploads: Uploads, worker: Worker) -> None:
        job = await uploads.job()
        for _ in range(5):
            worker.claim(job["id"])  # more often than max_attempts allows without retries
            worker.fail(job["id"], "worker_lost", "The worker was lost.")
            await client.post(f"/v1/jobs/{job['id']}/retry")
        assert (await client.get(f"/v1/jobs/{job['id']}")).json()["attempt"] == 5

    async def test_a_success_is_not_tried_again(
        self, client: httpx.AsyncClient, uploads: Uploads, worker: Worker
    ) -> None:
        job = await uploads.job()
        worker.claim(job["id"])
        worker.succeed(job["id"], report())
        answer = await client.post(f"/v1/jobs/{job['id']}/retry")
        assert (answer.status_code, answer.json()["code"]) == (409, "not_retryable")

    async def test_not_without_its_data(self, client: httpx.AsyncClient, uploads: Uploads) -> None:
        dataset = await uploads.dataset()
        job = await uploads.job(data={"evaluate": dataset})
        assert (await client.delete(f"/v1/datasets/{dataset}")).json()["code"] == "in_use"
        await client.post(f"/v1/jobs/{job['id']}/cancel")
        assert (await client.delete(f"/v1/datasets/{dataset}")).status_code == 204
        assert (await client.post(f"/v1/jobs/{job['id']}/retry")).status_code == 409


class TestWaiting:
    async def test_a_post_waits_for_the_end(
        self, client: httpx.AsyncClient, uploads: Uploads, app: FastAPI, worker: Worker, engine: Engine
    ) -> None:
        model = await uploads.model()
        answers: list[httpx.Response] = []

        async def post() -> None:
            request = {"model": model, "recipe": [{"step": "half_precision"}]}
            answers.append(await client.post("/v1/jobs", json=request, headers={"Prefer": "wait=20"}))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(post)
                watcher = app.state.services.watcher
                await until(lambda: watcher.waiting)
                job_id = ids.show(ids.JOB, next(iter(watcher.waiting)))
                worker.claim(job_id)
                worker.succeed(job_id, report())
        assert (answers[0].status_code, answers[0].json()["status"]) == (202, "succeeded")

    async def test_a_get_waits_for_another_version(
        self, client: httpx.AsyncClient, uploads: Uploads, app: FastAPI, api_key: str, worker: Worker
    ) -> None:
        job = await uploads.job()
        url, answers = f"/v1/jobs/{job['id']}", []
        etag = (await client.get(url)).headers["etag"]
        assert etag == f'"{job["version"]}"'

        async def poll() -> None:
            async with client_of(app, api_key) as other:
                answers.append(await other.get(url, headers={"Prefer": "wait=20", "If-None-Match": etag}))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(poll)
                await until(lambda: app.state.services.watcher.waiting)
                worker.claim(job["id"])
        assert answers[0].json()["status"] == "running"
        assert answers[0].headers["etag"] != etag

    async def test_waiting_holds_no_database_connection(
        self, client: httpx.AsyncClient, uploads: Uploads, app: FastAPI
    ) -> None:
        job = await uploads.job()
        url, headers = f"/v1/jobs/{job['id']}", {"Prefer": "wait=30"}
        pool = app.state.services.engine.pool
        more_than_the_pool = pool.size() + 15
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for _ in range(more_than_the_pool):
                    tasks.start_soon(lambda: client.get(url, headers=headers))
                waiting = app.state.services.watcher.waiting
                await until(lambda: sum(map(len, waiting.values())) == more_than_the_pool)
                await until(lambda: pool.checkedout() == 0)
                await client.post(f"{url}/cancel")

    async def test_no_news_is_a_304(self, client: httpx.AsyncClient, uploads: Uploads) -> None:
        job = await uploads.job()
        headers = {"Prefer": "wait=1", "If-None-Match": f'"{job["version"]}"'}
        answer = await client.get(f"/v1/jobs/{job['id']}", headers=headers)
        assert (answer.status_code, answer.content) == (304, b"")

    async def test_a_lost_database_connection_is_made_anew(
        self, client: httpx.AsyncClient, uploads: Uploads, app: FastAPI, worker: Worker, engine: Engine
    ) -> None:
        job = await uploads.job()
        with engine.connect() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE query LIKE 'LISTEN%%' AND datname = current_database()"
            )
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: client.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=20"}))
                await until(lambda: app.state.services.watcher.waiting)
                worker.claim(job["id"])
                worker.succeed(job["id"], report())


async def test_lists_are_paged_newest_first(client: httpx.AsyncClient, uploads: Uploads) -> None:
    model = await uploads.model()
    jobs = [(await uploads.job(model=model, labels={"n": str(n)}))["id"] for n in range(5)]
    seen: list[str] = []
    token: str | None = None
    while True:
        params = {"page_size": 2} | ({"page_token": token} if token else {})
        page = (await client.get("/v1/jobs", params=params)).json()
        seen += [job["id"] for job in page["items"]]
        token = page["next_page_token"]
        if token is None:
            break
        await uploads.job(model=model)  # newer ones shift no page
    assert seen == jobs[::-1]


async def test_lists_are_selected_by_status_and_label(client: httpx.AsyncClient, uploads: Uploads) -> None:
    model = await uploads.model()
    first, second = [await uploads.job(model=model, labels={"n": str(n)}) for n in range(2)]
    await client.post(f"/v1/jobs/{first['id']}/cancel")

    async def listed(**params: str) -> list[str]:
        return [job["id"] for job in (await client.get("/v1/jobs", params=params)).json()["items"]]

    assert await listed(status="queued") == [second["id"]]
    assert await listed(label="n:0") == [first["id"]]
    assert await listed(label="n:0", status="queued") == []
