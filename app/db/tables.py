"""The tables. State lives here and nowhere else; the constraints below are the last word on what a row may say."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from uuid6 import uuid7

json = JSONB(none_as_null=True)  # None is SQL NULL, which the constraints below speak of, and not the JSON null
type_map = {datetime: DateTime(timezone=True), dict[str, Any]: json, list[Any]: json, str: Text, bytes: LargeBinary}


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = type_map


def one_of(column: str, values: tuple[str, ...], name: str) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(v) for v in values)})", name=name)


class Row:
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Tenant(Row, Base):
    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(unique=True)


class ApiKey(Row, Base):
    __tablename__ = "api_keys"

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(doc="the first characters of the key, to tell keys apart in lists")
    digest: Mapped[bytes] = mapped_column(unique=True, doc="HMAC-SHA256 of the key; the key itself is never stored")
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Blob(Row, Base):
    """Immutable bytes. `staged` while they arrive; `stored` from the transaction that publishes what refers to them."""

    __tablename__ = "blobs"
    __table_args__ = (
        one_of("state", ("staged", "stored"), "state"),
        one_of("backend", ("postgres", "file", "s3"), "backend"),
        CheckConstraint("state = 'staged' OR (sha256 IS NOT NULL AND size IS NOT NULL)", name="stored_is_hashed"),
        Index("uq_blobs_content", "tenant_id", "sha256", unique=True, postgresql_where=text("state = 'stored'")),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(default="staged")
    backend: Mapped[str]
    sha256: Mapped[bytes | None]
    size: Mapped[int | None] = mapped_column(BigInteger)


class BlobChunk(Base):
    """One MiB of a blob (the last one shorter). STORAGE EXTERNAL, set in the migration: out of line, uncompressed."""

    __tablename__ = "blob_chunks"

    blob_id: Mapped[UUID] = mapped_column(ForeignKey("blobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes]


class Model(Row, Base):
    """An immutable model: an upload, or the result of a job (then it has a parent)."""

    __tablename__ = "models"
    __table_args__ = (
        one_of("status", ("processing", "ready", "rejected"), "status"),
        CheckConstraint("(status = 'rejected') = (error IS NOT NULL)", name="rejected_has_error"),
        CheckConstraint("status <> 'ready' OR spec IS NOT NULL", name="ready_has_spec"),
        CheckConstraint("(parent_id IS NULL) = (job_id IS NULL)", name="result_has_parent_and_job"),
        CheckConstraint("architecture_id IS NULL OR parent_id IS NULL", name="result_has_its_own_architecture"),
        UniqueConstraint("job_id", name="uq_models_job_id"),  # at most one result a job
        Index("ix_models_tenant_page", "tenant_id", "id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str]
    filename: Mapped[str]
    status: Mapped[str] = mapped_column(default="processing")
    error: Mapped[dict[str, Any] | None] = mapped_column(doc="modelpress.run.RunError")
    spec: Mapped[dict[str, Any] | None] = mapped_column(doc="modelpress.models.ModelSpec")
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("models.id"), index=True)
    architecture_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("models.id"), index=True, doc="whose architecture the weights belong to, where they came alone"
    )
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", use_alter=True))


class ModelFile(Base):
    """One stored file of a model; the uploaded file of an upload, one file a format of a result."""

    __tablename__ = "model_files"

    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    format: Mapped[str] = mapped_column(
        String(16),
        primary_key=True,
        doc="as ModelSpec.format or jobs.Format have it; 'upload' until it has been read",
    )
    suffix: Mapped[str] = mapped_column(doc="of the file's name, with its dot")
    blob_id: Mapped[UUID] = mapped_column(ForeignKey("blobs.id"), index=True)


class Dataset(Row, Base):
    __tablename__ = "datasets"
    __table_args__ = (
        one_of("status", ("processing", "ready", "rejected"), "status"),
        CheckConstraint("(status = 'rejected') = (error IS NOT NULL)", name="rejected_has_error"),
        CheckConstraint("status <> 'ready' OR spec IS NOT NULL", name="ready_has_spec"),
        Index("ix_datasets_tenant_page", "tenant_id", "id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str]
    filename: Mapped[str]
    status: Mapped[str] = mapped_column(default="processing")
    error: Mapped[dict[str, Any] | None]
    spec: Mapped[dict[str, Any] | None] = mapped_column(doc="modelpress.models.DatasetSpec")
    blob_id: Mapped[UUID] = mapped_column(ForeignKey("blobs.id"), index=True)


STATUSES = ("queued", "running", "canceling", "succeeded", "failed", "canceled")
FINAL = ("succeeded", "failed", "canceled")


class Job(Row, Base):
    """A piece of work for a runner: a compression that a user asked for, or the reading of an upload.

    A worker owns it while `attempt` is its own and `lease_until` has not passed on the database's clock. Every write of
    a worker says `WHERE id = … AND attempt = … AND status IN ('running', 'canceling')`; no row updated means fenced.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        one_of("kind", ("compress", "inspect_model", "inspect_dataset"), "kind"),
        one_of("status", STATUSES, "status"),
        CheckConstraint("(status IN ('running', 'canceling')) = (lease_until IS NOT NULL)", name="lease_while_owned"),
        CheckConstraint(
            "(status IN ('succeeded', 'failed', 'canceled')) = (finished_at IS NOT NULL)", name="final_is_finished"
        ),
        CheckConstraint("(status = 'failed') = (error IS NOT NULL)", name="failed_has_error"),
        CheckConstraint("attempt <= max_attempts", name="bounded_attempts"),
        CheckConstraint("kind = 'inspect_dataset' OR model_id IS NOT NULL", name="has_model"),
        CheckConstraint("(kind = 'inspect_dataset') = (dataset_id IS NOT NULL)", name="has_dataset"),
        Index("ix_jobs_claim", "queue", "priority", "id", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_lease", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
        Index("ix_jobs_tenant_page", "tenant_id", "id", postgresql_where=text("kind = 'compress'")),
        Index(
            "uq_jobs_idempotency",
            "tenant_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(default="compress")
    queue: Mapped[str]
    priority: Mapped[int] = mapped_column(SmallInteger, default=0, doc="lower is sooner")
    status: Mapped[str] = mapped_column(default="queued")
    model_id: Mapped[UUID | None] = mapped_column(ForeignKey("models.id"), index=True)
    dataset_id: Mapped[UUID | None] = mapped_column(ForeignKey("datasets.id"), doc="of an inspect_dataset")
    teacher_id: Mapped[UUID | None] = mapped_column(ForeignKey("models.id"))
    data: Mapped[dict[str, Any]] = mapped_column(default=dict, doc="JobData of dataset uuids, as strings")
    request: Mapped[dict[str, Any]] = mapped_column(default=dict, doc="modelpress.jobs.Recipe")
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    progress: Mapped[dict[str, Any] | None] = mapped_column(doc="modelpress.jobs.Progress")
    attempt: Mapped[int] = mapped_column(default=0, doc="number of the current or last attempt; 0: none yet")
    max_attempts: Mapped[int] = mapped_column(default=3)
    worker: Mapped[str | None] = mapped_column(doc="who owns it, for people")
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime] = mapped_column(server_default=func.now(), doc="backoff between attempts")
    deadline_seconds: Mapped[float]
    cancel_requested_at: Mapped[datetime | None]
    error: Mapped[dict[str, Any] | None] = mapped_column(doc="modelpress.run.RunError")
    warnings: Mapped[list[Any]] = mapped_column(default=list)
    environment: Mapped[dict[str, Any] | None] = mapped_column(doc="modelpress.report.Environment")
    report: Mapped[dict[str, Any] | None] = mapped_column(doc="modelpress.report.Report", deferred=True)
    log: Mapped[str | None] = mapped_column(doc="the runner's bounded output", deferred=True)
    started_at: Mapped[datetime | None] = mapped_column(doc="of the current or last attempt")
    finished_at: Mapped[datetime | None]
    idempotency_key: Mapped[str | None]
    request_digest: Mapped[bytes | None] = mapped_column(doc="of the request body, to tell a replay from another job")


class JobCheckpoint(Base):
    """How far a job's trainings have come, for its next attempt; the reconciler removes it once the job has ended."""

    __tablename__ = "job_checkpoints"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True, doc="path below the run directory's checkpoints/")
    blob_id: Mapped[UUID] = mapped_column(ForeignKey("blobs.id"), index=True)


class JobEvent(Base):
    """What happened to a job, in order. Inserting one notifies the channel `modelpress_jobs` (by a trigger)."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    attempt: Mapped[int]
    type: Mapped[str] = mapped_column(doc="status, progress, metric or warning")
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Comparison(Row, Base):
    __tablename__ = "comparisons"

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    request: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any]]
