"""Rows as the service makes them, and waiting for what becomes of them."""

import json
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, undefer
from uuid6 import uuid7

from app.db.tables import Dataset, Job, JobEvent, Model, ModelFile
from app.storage.base import BlobStore

HALF = {"recipe": [{"step": "half_precision"}]}


class Desk:
    """Takes jobs in, as the service would."""

    def __init__(self, engine: Engine, store: BlobStore, tenant: UUID) -> None:
        self.engine = engine
        self.store = store
        self.tenant = tenant

    def compress(self, content: bytes, **columns: Any) -> UUID:
        return self._post("compress", content, {"queue": "cpu", "request": HALF, **columns})

    def inspect_model(self, content: bytes, **columns: Any) -> UUID:
        return self._post("inspect_model", content, {"queue": "ingest", **columns})

    def inspect_dataset(self, content: bytes, **columns: Any) -> UUID:
        return self._post("inspect_dataset", content, {"queue": "ingest", **columns})

    def _post(self, kind: str, content: bytes, columns: dict[str, Any]) -> UUID:
        with Session(self.engine) as session, self.store.writer(self.tenant, len(content)) as writer:
            writer.write(content)
            writer.finish()
            blob = writer.publish(session)
            architecture = columns.pop("architecture_id", None)
            if kind == "inspect_dataset":
                about = self._dataset(session, blob)
            else:
                about = self._model(session, blob, kind, architecture)
            job = Job(id=uuid7(), tenant_id=self.tenant, kind=kind, **about, **{"deadline_seconds": 60, **columns})
            session.add(job)
            session.commit()
            return job.id

    def _model(self, session: Session, blob: UUID, kind: str, architecture: UUID | None) -> dict[str, UUID]:
        ready = kind == "compress"
        model = Model(
            id=uuid7(),
            tenant_id=self.tenant,
            name="digits",
            filename="digits.onnx",
            architecture_id=architecture,
            status="ready" if ready else "processing",
            spec={} if ready else None,
        )
        session.add(model)
        session.flush()
        session.add(ModelFile(model_id=model.id, format="onnx" if ready else "upload", suffix=".onnx", blob_id=blob))
        return {"model_id": model.id}

    def _dataset(self, session: Session, blob: UUID) -> dict[str, UUID]:
        dataset = Dataset(id=uuid7(), tenant_id=self.tenant, name="digits", filename="digits.npz", blob_id=blob)
        session.add(dataset)
        session.flush()
        return {"dataset_id": dataset.id}

    def job(self, job_id: UUID) -> Job:
        with Session(self.engine) as session:
            return session.get_one(Job, job_id, options=[undefer(Job.report), undefer(Job.log)])

    def results(self, job_id: UUID) -> list[Model]:
        with Session(self.engine) as session:
            return list(session.scalars(select(Model).where(Model.job_id == job_id)))

    def events(self, job_id: UUID, kind: str = "status", **columns: Any) -> list[dict[str, Any]]:
        query = select(JobEvent).filter_by(job_id=job_id, type=kind, **columns).order_by(JobEvent.id)
        with Session(self.engine) as session:
            return [event.data for event in session.scalars(query)]

    def wait(self, job_id: UUID, *statuses: str, seconds: float = 20) -> Job:
        """Until the job is in one of these states. Fails with the job's story after so many seconds."""
        until(lambda: self.job(job_id).status in statuses, seconds, lambda: self.story(job_id))
        return self.job(job_id)

    def story(self, job_id: UUID) -> str:
        job = self.job(job_id)
        return f"{job.status} after {self.events(job_id)}; error {job.error}; log:\n{job.log}"


def until(condition: Callable[[], bool], seconds: float = 20, story: Callable[[], str] = str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not after {seconds} s: {story()}")
        time.sleep(0.02)


def program(act: str, **options: Any) -> bytes:
    """An upload that tells the stand-in engine what to do."""
    return json.dumps({"act": act, **options}).encode()
