"""A worker's claim on a job: who may write what, and for how long. Time is the database's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, func, insert, select, update
from sqlalchemy.orm import Session

from app.db.tables import Job, JobEvent
from modelpress.run import RunError
from workers import transitions
from workers.transitions import OWNED, FencedError


@dataclass(frozen=True)
class Claim:
    """A job as it was when this attempt at it began."""

    job_id: UUID
    attempt: int
    tenant_id: UUID
    kind: str
    queue: str
    model_id: UUID | None
    dataset_id: UUID | None
    teacher_id: UUID | None
    data: dict[str, Any]
    request: dict[str, Any]
    deadline_seconds: float


@dataclass(frozen=True)
class News:
    """What a runner told since the last report: the latest progress, and events in their order."""

    progress: dict[str, Any] | None
    events: Sequence[tuple[str, dict[str, Any]]]


def claim(engine: Engine, queues: Sequence[str], worker: str, lease_seconds: float) -> Claim | None:
    """The best waiting job of these queues, ours from now on; None where none waits."""
    best = (
        select(Job)
        .where(Job.queue.in_(queues), Job.status == "queued")
        .where(Job.not_before <= func.clock_timestamp(), Job.attempt < Job.max_attempts)
        .order_by(Job.priority, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    with Session(engine, expire_on_commit=False) as session, session.begin():
        job = session.scalar(best)
        if job is None:
            return None
        job.status = "running"
        job.attempt += 1
        job.worker = worker
        job.lease_until = func.clock_timestamp() + timedelta(seconds=lease_seconds)
        job.started_at = func.clock_timestamp()
        job.progress = None
        job.warnings = []
        session.add(JobEvent(job_id=job.id, attempt=job.attempt, type="status", data={"status": "running"}))
        return Claim(
            job_id=job.id,
            attempt=job.attempt,
            tenant_id=job.tenant_id,
            kind=job.kind,
            queue=job.queue,
            model_id=job.model_id,
            dataset_id=job.dataset_id,
            teacher_id=job.teacher_id,
            data=job.data,
            request=job.request,
            deadline_seconds=job.deadline_seconds,
        )


def some_wait(engine: Engine, queues: Sequence[str]) -> bool:
    waiting = select(Job.id).where(
        Job.queue.in_(queues), Job.status == "queued", Job.not_before <= func.clock_timestamp()
    )
    with engine.connect() as connection:
        return connection.execute(waiting.limit(1)).first() is not None


class Ownership:
    """One attempt's right to write. Every method raises FencedError once it is lost, and has then written nothing."""

    def __init__(self, engine: Engine, job_id: UUID, attempt: int) -> None:
        self.engine = engine
        self.job_id = job_id
        self.attempt = attempt
        self._fence = (Job.id == job_id, Job.attempt == attempt, Job.status.in_(OWNED))

    def status(self) -> str:
        """running or canceling."""
        with self.engine.connect() as connection:
            return self._unless_fenced(connection.execute(select(Job.status).where(*self._fence)).scalar())

    def renew(self, lease_seconds: float) -> str:
        until = func.clock_timestamp() + timedelta(seconds=lease_seconds)
        with self.engine.begin() as connection:
            renewed = update(Job).where(*self._fence).values(lease_until=until).returning(Job.status)
            return self._unless_fenced(connection.execute(renewed).scalar())

    def report(self, news: News) -> None:
        with self.locked() as (session, job):
            events = list(news.events)
            if news.progress is not None:
                if _moved_on(job.progress, news.progress):
                    events.insert(0, ("progress", news.progress))
                job.progress = news.progress
            warnings = [data["message"] for kind, data in events if kind == "warning"]
            if warnings:
                job.warnings = [*job.warnings, *warnings]
            rows = [
                {"job_id": self.job_id, "attempt": self.attempt, "type": kind, "data": data} for kind, data in events
            ]
            if rows:
                session.execute(insert(JobEvent), rows)

    @contextmanager
    def locked(self, log: str | None = None) -> Iterator[tuple[Session, Job]]:
        """One transaction with the job's row locked, so that nobody can fence us half way through it."""
        # No autoflush: between two states of a row there are some that its constraints refuse.
        with Session(self.engine, autoflush=False) as session, session.begin():
            job = transitions.lock(session, self.job_id, self.attempt)
            if log is not None:
                job.log = log
            yield session, job

    def fail(self, error: RunError, log: str | None = None) -> None:
        with self.locked(log) as (session, job):
            transitions.fail(session, job, error)

    def retry(self, error: RunError, backoff_seconds: float, log: str | None = None) -> None:
        """Queued again after twice the pause of the attempt before, or failed where no attempt is left."""
        with self.locked(log) as (session, job):
            transitions.requeue(session, job, error, min(backoff_seconds * 2 ** (self.attempt - 1), 60))

    def cancel(self, log: str | None = None) -> None:
        with self.locked(log) as (session, job):
            transitions.cancel(session, job)

    def give_back(self) -> None:
        with self.locked() as (session, job):
            transitions.give_back(session, job)

    def _unless_fenced(self, status: str | None) -> str:
        if status is None:
            raise FencedError(f"job {self.job_id}, attempt {self.attempt}")
        return status


def _moved_on(before: dict[str, Any] | None, now: dict[str, Any]) -> bool:
    """Another step, or the next percent: so much of a job's progress is kept as events, the rest only in its row."""
    if before is None or before["step"] != now["step"]:
        return True
    return int(before["fraction"] * 100) != int(now["fraction"] * 100)
