"""What the service answers. Fields that a newer service adds are ignored, so that an older client goes on working."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from modelpress.jobs import JobStatus, Progress
from modelpress.models import DatasetSpec, ModelStats, Signature
from modelpress.report import Environment, Verdict


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Problem(Answer):
    """Why an upload was rejected or a job failed."""

    code: str
    message: str


class File(Answer):
    format: str
    size_bytes: int
    sha256: str


class Model(Answer):
    id: str
    name: str
    status: Literal["processing", "ready", "rejected"]
    created_at: datetime
    error: Problem | None = None
    format: str | None = None
    size_bytes: int
    sha256: str
    signature: Signature | None = None
    stats: ModelStats | None = None
    parent_id: str | None = None
    job_id: str | None = None
    files: tuple[File, ...] = ()


class Dataset(Answer):
    id: str
    name: str
    status: Literal["processing", "ready", "rejected"]
    created_at: datetime
    error: Problem | None = None
    size_bytes: int
    sha256: str
    spec: DatasetSpec | None = None


class JobResult(Answer):
    model_id: str
    verdict: Verdict
    targets_met: bool | None = None


class Job(Answer):
    id: str
    status: JobStatus
    created_at: datetime
    model_id: str
    attempt: int = 0
    progress: Progress | None = None
    result: JobResult | None = None
    error: Problem | None = None
    warnings: tuple[str, ...] = ()
    environment: Environment | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    resolved_recipe: tuple[dict[str, Any], ...] = ()
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def done(self) -> bool:
        return self.status in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED}


class JobEvent(Answer):
    """Something that happened to a job: a new status, progress, a figure such as a loss, or a warning."""

    id: int
    type: str
    attempt: int = 0
    data: dict[str, Any]
    created_at: datetime | None = None


class StepInfo(Answer):
    """A technique of the catalogue: its options as a JSON Schema, the data it needs, and what may come before it."""

    name: str
    description: str = ""
    needs: str
    after: tuple[str, ...] = ()
    paper: str = ""
    options: dict[str, Any] = Field(default_factory=dict, alias="schema")


class Comparison(Answer):
    """A table: one row a candidate, each measured against the baseline."""

    id: str
    baseline: str
    rows: tuple[dict[str, Any], ...]


T = TypeVar("T")


class Page(Answer, Generic[T]):
    items: tuple[T, ...]
    next_page_token: str | None = None
