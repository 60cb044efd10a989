"""Whoever waits for a job hears of it on the channel `modelpress_jobs`."""

import psycopg
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.db.tables import Job, JobEvent, Model


@pytest.fixture
def job(engine, tenant) -> Job:
    with Session(engine, expire_on_commit=False) as session:
        model = Model(tenant_id=tenant, name="lenet", filename="lenet.onnx")
        session.add(model)
        session.flush()
        job = Job(tenant_id=tenant, queue="cpu", model_id=model.id, deadline_seconds=60)
        session.add(job)
        session.commit()
    return job


@pytest.fixture
def heard(database_url):
    """The payloads that have arrived, in order."""
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute("LISTEN modelpress_jobs")
        yield lambda: [notify.payload for notify in listener.notifies(timeout=0.2)]


def change(engine, job, **values):
    with Session(engine) as session:
        session.execute(update(Job).where(Job.id == job.id).values(**values))
        session.commit()


def test_an_event_notifies(engine, job, heard):
    with Session(engine) as session:
        session.add(JobEvent(job_id=job.id, attempt=1, type="metric", data={"loss": 0.5}))
        session.flush()
        assert heard() == []
        session.commit()
    assert heard() == [str(job.id)]


def test_progress_and_status_notify_when_they_change(engine, job, heard):
    change(engine, job, progress={"step": "reading"})
    assert heard() == [str(job.id)]
    change(engine, job, progress={"step": "reading"}, worker="a")
    change(engine, job, worker="b")
    assert heard() == []
    change(engine, job, status="running", lease_until=job.created_at)
    assert heard() == [str(job.id)]
