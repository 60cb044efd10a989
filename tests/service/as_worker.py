"""Writes to the database what a worker writes, in transactions of its own, without a worker."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from app import ids
from app.db.tables import Dataset, Job, JobEvent, Model, ModelFile
from app.storage.base import BlobStore
from modelpress.jobs import Progress
from modelpress.models import DatasetSpec, ModelSpec
from modelpress.report import Report
from tests.service.examples import CLASSIFIER, LABELLED

RESULT = {"onnx .onnx": b"a smaller model"}
LEASE = func.now() + text("interval '60 seconds'")


@dataclass
class Worker:
    engine: Engine
    store: BlobStore

    def read_model(self, shown_id: str, spec: ModelSpec = CLASSIFIER) -> None:
        model_id = ids.parse(ids.MODEL, shown_id)
        with Session(self.engine) as session:
            session.execute(
                update(Model).where(Model.id == model_id).values(status="ready", spec=spec.model_dump(mode="json"))
            )
            session.execute(update(ModelFile).where(ModelFile.model_id == model_id).values(format=spec.format))
            self._succeed(session, self._inspection(session, Job.model_id == model_id))
            session.commit()

    def read_dataset(self, shown_id: str, spec: DatasetSpec = LABELLED) -> None:
        dataset_id = ids.parse(ids.DATASET, shown_id)
        with Session(self.engine) as session:
            session.execute(
                update(Dataset)
                .where(Dataset.id == dataset_id)
                .values(status="ready", spec=spec.model_dump(mode="json"))
            )
            self._succeed(session, self._inspection(session, Job.dataset_id == dataset_id))
            session.commit()

    def reject_model(self, shown_id: str, code: str, message: str) -> None:
        model_id = ids.parse(ids.MODEL, shown_id)
        error = {"code": code, "message": message, "retryable": False}
        with Session(self.engine) as session:
            session.execute(update(Model).where(Model.id == model_id).values(status="rejected", error=error))
            job_id = self._inspection(session, Job.model_id == model_id)
            self._move(session, job_id, "failed", finished_at=func.now(), error=error)
            session.commit()

    def claim(self, shown_id: str) -> None:
        with Session(self.engine) as session:
            job_id = ids.parse(ids.JOB, shown_id)
            self._move(session, job_id, "running", attempt=Job.attempt + 1, lease_until=LEASE, started_at=func.now())
            session.commit()

    def progress(self, shown_id: str, step: str, fraction: float) -> None:
        progress = Progress(step=step, index=0, steps=1, fraction=fraction).model_dump(mode="json")
        with Session(self.engine) as session:
            job_id = ids.parse(ids.JOB, shown_id)
            session.execute(update(Job).where(Job.id == job_id).values(progress=progress))
            session.add(JobEvent(job_id=job_id, attempt=1, type="progress", data=progress))
            session.commit()

    def succeed(self, shown_id: str, report: Report, files: dict[str, bytes] = RESULT) -> str:
        """Publishes the result as one act; returns its id. `files`: contents by format and suffix."""
        job_id = ids.parse(ids.JOB, shown_id)
        with Session(self.engine) as session, ExitStack() as writers:
            job = session.get_one(Job, job_id)
            parent = session.get_one(Model, job.model_id)
            model = Model(
                tenant_id=job.tenant_id,
                name=f"{parent.name} (smaller)",
                filename=parent.filename,
                status="ready",
                spec=parent.spec,
                parent_id=parent.id,
                job_id=job.id,
            )
            session.add(model)
            session.flush()
            for name, content in files.items():
                blob = writers.enter_context(self.store.writer(job.tenant_id))
                blob.write(content)
                blob.finish()
                file_format, suffix = name.split()
                session.add(
                    ModelFile(model_id=model.id, format=file_format, suffix=suffix, blob_id=blob.publish(session))
                )
            environment = report.environment.model_dump(mode="json")
            self._succeed(session, job_id, report=report.model_dump(mode="json"), environment=environment)
            session.commit()
            return ids.show(ids.MODEL, model.id)

    def fail(self, shown_id: str, code: str, message: str) -> None:
        error = {"code": code, "message": message, "retryable": True}
        with Session(self.engine) as session:
            job_id = ids.parse(ids.JOB, shown_id)
            self._move(session, job_id, "failed", lease_until=None, finished_at=func.now(), error=error)
            session.commit()

    def stop(self, shown_id: str) -> None:
        """What a worker does when it sees that its job is being canceled."""
        with Session(self.engine) as session:
            self._move(session, ids.parse(ids.JOB, shown_id), "canceled", lease_until=None, finished_at=func.now())
            session.commit()

    def _inspection(self, session: Session, of: Any) -> UUID:
        return session.scalars(select(Job.id).where(of, Job.kind.like("inspect_%"))).one()

    def _succeed(self, session: Session, job_id: UUID, **values: Any) -> None:
        self._move(session, job_id, "succeeded", lease_until=None, finished_at=func.now(), **values)

    def _move(self, session: Session, job_id: UUID, status: str, **values: Any) -> None:
        move = update(Job).where(Job.id == job_id).values(status=status, **values).returning(Job.attempt)
        attempt = session.execute(move).scalar_one()
        session.add(JobEvent(job_id=job_id, attempt=attempt, type="status", data={"status": status}))
        session.flush()
