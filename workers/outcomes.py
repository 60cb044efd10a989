"""What a successful run leaves behind, published in the one transaction that ends its job."""

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, get_args
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import update
from sqlalchemy.orm import Session
from uuid6 import uuid7

from app.db.tables import Dataset, Job, Model, ModelFile
from app.storage.base import BlobWriter
from modelpress.jobs import Extra
from modelpress.models import DatasetSpec, ModelSpec
from modelpress.report import Report
from modelpress.run import ResultFile
from workers import transitions
from workers.ownership import Ownership

EXTRAS = get_args(Extra)


def finish_compression(
    ownership: Ownership,
    spec: ModelSpec,
    report: Report,
    files: Sequence[tuple[ResultFile, BlobWriter]],
    log: str,
) -> UUID | None:
    """The id of the new model; None where the user had canceled by then. The writers are finished, not published."""
    with ownership.locked(log) as (session, job):
        if job.status == "canceling":
            transitions.cancel(session, job)
            return None
        parent = session.get_one(Model, job.model_id)
        first = min((file for file, _ in files), key=lambda file: file.format)  # as wherever a model has several files
        steps = ", ".join(step["step"] for step in job.request["recipe"])
        result = Model(
            id=uuid7(),
            tenant_id=job.tenant_id,
            name=f"{parent.name} ({steps})",
            filename=f"{PurePath(parent.filename).stem}{PurePath(first.path).suffix}",
            status="ready",
            spec=plain(spec),
            parent_id=parent.id,
            job_id=job.id,
        )
        session.add(result)
        session.flush()
        for file, writer in files:
            suffix = PurePath(file.path).suffix
            if file.format in EXTRAS:
                suffix = f".{file.format}{suffix}"  # in a folder of downloads it must not take the result's place
            session.add(
                ModelFile(model_id=result.id, format=file.format, suffix=suffix, blob_id=writer.publish(session))
            )
        job.report = plain(report)
        job.environment = plain(report.environment)
        job.warnings = list(dict.fromkeys([*job.warnings, *report.warnings]))
        transitions.succeed(session, job)
        return result.id


def finish_inspection(ownership: Ownership, spec: ModelSpec | DatasetSpec, log: str) -> None:
    with ownership.locked(log) as (session, job):
        if job.status == "canceling":
            transitions.cancel(session, job)
            return
        if isinstance(spec, ModelSpec):
            _model_is_ready(session, job, spec)
        else:
            dataset = session.get_one(Dataset, job.dataset_id)
            dataset.status = "ready"
            dataset.spec = plain(spec)
        transitions.succeed(session, job)


def _model_is_ready(session: Session, job: Job, spec: ModelSpec) -> None:
    model = session.get_one(Model, job.model_id)
    model.status = "ready"
    model.spec = plain(spec)
    named = update(ModelFile).where(ModelFile.model_id == model.id, ModelFile.format == "upload")
    session.execute(named.values(format=spec.format))


def plain(value: BaseModel) -> dict[str, Any]:
    """As JSON that PostgreSQL takes: no NaN and no infinity (null instead), no NUL in a string."""
    cleaned: dict[str, Any] = without_nul(json.loads(value.model_dump_json(), parse_constant=lambda _: None))
    return cleaned


def without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "�")
    if isinstance(value, list):
        return [without_nul(item) for item in value]
    if isinstance(value, dict):
        return {without_nul(key): without_nul(item) for key, item in value.items()}
    return value
