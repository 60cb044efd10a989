"""How a job's row moves on, inside a transaction that holds its lock: with an event, and with the upload it reads."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.tables import Dataset, Job, JobEvent, Model
from modelpress.run import RunError

OWNED = ("running", "canceling")


class FencedError(Exception):
    """The job is not ours any more: its lease ran out, or it ended otherwise. Nothing was written, nothing may be."""


def lock(session: Session, job_id: UUID, attempt: int) -> Job:
    """The row, locked until the transaction ends. Raises FencedError where this attempt does not own the job."""
    owned = select(Job).where(Job.id == job_id, Job.attempt == attempt, Job.status.in_(OWNED)).with_for_update()
    job = session.scalar(owned)
    if job is None:
        raise FencedError(f"job {job_id}, attempt {attempt}")
    return job


def succeed(session: Session, job: Job) -> None:
    job.finished_at = func.now()
    _move(session, job, "succeeded")


def fail(session: Session, job: Job, error: RunError) -> None:
    """Canceled instead where the user asked for that first. An upload that cannot be read is rejected with it."""
    if job.status == "canceling":
        cancel(session, job)
        return
    job.error = error.model_dump()
    job.finished_at = func.now()
    _reject_upload(session, job, error)
    _move(session, job, "failed", error={"code": error.code, "message": error.message})


def cancel(session: Session, job: Job) -> None:
    job.finished_at = func.now()
    _reject_upload(session, job, RunError(code="canceled", message="reading it was canceled; upload it again"))
    _move(session, job, "canceled")


def requeue(session: Session, job: Job, error: RunError, seconds: float) -> None:
    """Another attempt, no sooner than in so many seconds; `failed` where none is left."""
    if job.status == "canceling":
        cancel(session, job)
    elif job.attempt >= job.max_attempts:
        times = "once" if job.attempt == 1 else f"{job.attempt} times"
        fail(session, job, error.model_copy(update={"message": f"{error.message} It was tried {times}."}))
    else:
        job.not_before = func.clock_timestamp() + timedelta(seconds=seconds)
        _move(session, job, "queued", error={"code": error.code, "message": error.message})


def give_back(session: Session, job: Job) -> None:
    """Queued again as if this attempt had not been. Attempts still only count up, because they are what fences."""
    if job.status == "canceling":
        cancel(session, job)
        return
    job.max_attempts += 1
    job.not_before = func.now()
    _move(session, job, "queued")


def _move(session: Session, job: Job, status: str, **more: Any) -> None:
    job.status = status
    job.lease_until = None
    session.add(JobEvent(job_id=job.id, attempt=job.attempt, type="status", data={"status": status, **more}))


def _reject_upload(session: Session, job: Job, error: RunError) -> None:
    upload: Model | Dataset | None = None
    if job.kind == "inspect_model":
        upload = session.get_one(Model, job.model_id)
    elif job.kind == "inspect_dataset":
        upload = session.get_one(Dataset, job.dataset_id)
    if upload is not None:
        upload.status = "rejected"
        upload.error = error.model_dump()
