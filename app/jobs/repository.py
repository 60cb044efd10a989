from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, insert, select, update
from sqlalchemy.orm import undefer
from uuid6 import uuid7

from app.db.tables import FINAL, Job, JobEvent, Model
from app.repository import TenantRepository

INSPECTION_SECONDS = 900.0
ATTEMPTS = 3


@dataclass(frozen=True)
class Outcome:
    """What a job came to, without its whole report."""

    model_id: UUID | None = None
    verdict: str | None = None
    targets_met: bool | None = None


class JobRepository(TenantRepository[Job]):
    """Jobs that users asked for; the inspections of uploads are only ever added and waited for."""

    table = Job

    def owned(self) -> Select[Job]:
        return super().owned().where(Job.kind == "compress")

    async def with_report(self, job_id: UUID) -> Job | None:
        query = self.owned().where(Job.id == job_id).options(undefer(Job.report))
        return await self.session.scalar(query.execution_options(populate_existing=True))

    async def with_reports(self, job_ids: Iterable[UUID]) -> dict[UUID, Job]:
        rows = await self.session.scalars(self.owned().where(Job.id.in_(list(job_ids))).options(undefer(Job.report)))
        return {row.id: row for row in rows}

    async def log(self, job_id: UUID) -> str | None:
        return await self.session.scalar(self.owned().where(Job.id == job_id).with_only_columns(Job.log))

    async def by_idempotency_key(self, key: str) -> Job | None:
        return await self.session.scalar(self.owned().where(Job.idempotency_key == key))

    def selected(self, status: str | None, labels: dict[str, str]) -> Select[Job]:
        query = self.owned() if status is None else self.owned().where(Job.status == status)
        return query.where(Job.labels.contains(labels)) if labels else query

    async def outcomes(self, job_ids: Iterable[UUID]) -> dict[UUID, Outcome]:
        query = (
            select(Job.id, Model.id, Job.report["verdict"].astext, Job.report["targets_met"].as_boolean())
            .outerjoin(Model, Model.job_id == Job.id)
            .where(Job.id.in_(list(job_ids)), Job.tenant_id == self.tenant_id)
        )
        return {job_id: Outcome(*outcome) for job_id, *outcome in await self.session.execute(query)}

    async def is_final(self, job_id: UUID) -> bool | None:
        """None where there is no such job."""
        return await self.session.scalar(self.owned().where(Job.id == job_id).with_only_columns(Job.status.in_(FINAL)))

    async def inspection_is_final(self, job_id: UUID) -> bool | None:
        """The same for the reading of an upload."""
        query = super().owned().where(Job.id == job_id).with_only_columns(Job.status.in_(FINAL))
        return await self.session.scalar(query)

    async def add(self, job: Job) -> None:
        """Queued, with the event that says so."""
        job.id = uuid7()
        job.tenant_id = self.tenant_id
        self.session.add(job)
        await self.session.flush()
        await self._status_event(job.id, "queued", 0)

    async def add_inspection(self, *, model_id: UUID | None = None, dataset_id: UUID | None = None) -> UUID:
        job = Job(
            kind="inspect_model" if model_id else "inspect_dataset",
            queue="ingest",
            model_id=model_id,
            dataset_id=dataset_id,
            deadline_seconds=INSPECTION_SECONDS,
        )
        await self.add(job)
        return job.id

    async def cancel(self, job_id: UUID) -> None:
        """Queued: canceled at once. Running: asked to stop; its worker does the rest. Else nothing."""
        for status, values in (
            ("queued", {"status": "canceled", "finished_at": func.now()}),
            ("running", {"status": "canceling"}),
            ("queued", {"status": "canceled", "finished_at": func.now()}),  # its worker was lost between the two
        ):
            if await self._move(job_id, (status,), {**values, "cancel_requested_at": func.now()}):
                return

    async def retry(self, job_id: UUID) -> bool:
        """Failed or canceled: queued again, with the attempts counted on. Says whether it was."""
        again: dict[str, Any] = {
            "status": "queued",
            "max_attempts": Job.attempt + ATTEMPTS,
            "not_before": func.now(),
            "progress": None,
            "error": None,
            "warnings": [],
            "environment": None,
            "finished_at": None,
            "cancel_requested_at": None,
        }
        return await self._move(job_id, ("failed", "canceled"), again)

    async def _move(self, job_id: UUID, sources: Sequence[str], values: dict[str, Any]) -> bool:
        """Guarded by the state it leaves, so that a worker that was faster wins."""
        moved = await self.session.scalar(
            update(Job)
            .where(Job.id == job_id, Job.tenant_id == self.tenant_id, Job.kind == "compress", Job.status.in_(sources))
            .values(values)
            .returning(Job.attempt)
            .execution_options(synchronize_session=False)
        )
        if moved is None:
            return False
        await self._status_event(job_id, values["status"], moved)
        return True

    async def _status_event(self, job_id: UUID, status: str, attempt: int) -> None:
        event = {"job_id": job_id, "attempt": attempt, "type": "status", "data": {"status": status}}
        await self.session.execute(insert(JobEvent).values(event))

    async def events(self, job_id: UUID, after: int, limit: int) -> list[JobEvent]:
        query = (
            select(JobEvent)
            .join(Job, Job.id == JobEvent.job_id)
            .where(Job.id == job_id, Job.tenant_id == self.tenant_id, JobEvent.id > after)
            .order_by(JobEvent.id)
            .limit(limit)
        )
        return list(await self.session.scalars(query))
