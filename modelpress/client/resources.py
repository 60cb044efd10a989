"""What the service answers. Fields that a newer service adds are ignored, so that an older client goes on working."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from modelpress.jobs import JobStatus, Progress, Task
from modelpress.models import ArraySpec, ModelStats, Signature
from modelpress.report import Agreement, Environment, Latency, Quality, Report, Size, Traffic, Verdict
from modelpress.steps import Data


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Problem(Answer):
    """Why an upload was rejected or a job failed. `code` is stable."""

    code: str
    message: str = Field(validation_alias=AliasChoices("message", "detail"))


class File(Answer):
    format: str
    filename: str
    size_bytes: int
    sha256: str


class Model(Answer):
    id: str
    name: str
    filename: str
    status: Literal["processing", "ready", "rejected"]
    created_at: datetime
    error: Problem | None = None
    format: str | None = None
    size_bytes: int
    sha256: str
    signature: Signature | None = None
    stats: ModelStats | None = None
    notes: tuple[str, ...] = ()
    architecture_id: str | None = None
    parent_id: str | None = None
    job_id: str | None = None
    files: tuple[File, ...] = ()


class Dataset(Answer):
    id: str
    name: str
    filename: str
    status: Literal["processing", "ready", "rejected"]
    created_at: datetime
    error: Problem | None = None
    size_bytes: int
    sha256: str
    examples: int | None = None
    arrays: tuple[ArraySpec, ...] = ()


class JobResult(Answer):
    model_id: str
    verdict: Verdict
    targets_met: bool | None = None


class Job(Answer):
    id: str
    status: JobStatus
    model: str
    created_at: datetime
    attempt: int = 0
    progress: Progress | None = None
    recipe: tuple[dict[str, Any], ...] = Field((), alias="resolved_recipe")
    result: JobResult | None = None
    error: Problem | None = None
    warnings: tuple[str, ...] = ()
    environment: Environment | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    report: Report | None = Field(None, description="not in lists")
    version: str = Field("", description="changes with anything above")

    @property
    def done(self) -> bool:
        return self.status in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED}


class StepPlan(Answer):
    step: dict[str, Any]
    needs: Data
    uses: str | None = Field(None, description="the data that this step will be given")
    dataset: str | None = None
    made_up: bool = Field(False, description="it works on made-up inputs, because no data is sent for it")


class Prediction(Answer):
    """A rough guess; only a report's figures are measured."""

    size_bytes: int
    size_ratio: float
    basis: str
    unforeseen: tuple[str, ...] = ()


class Plan(Answer):
    """What a job would do, with every default filled in."""

    steps: tuple[StepPlan, ...]
    task: Task
    prediction: Prediction


class JobEvent(Answer):
    """Something that happened to a job: a new status, progress, a figure such as a loss, or a warning."""

    id: int
    type: str
    attempt: int
    data: dict[str, Any]
    created_at: datetime


class StepInfo(Answer):
    """A technique of the catalogue: its options as a JSON Schema, the data it needs, and what may stand around it."""

    name: str
    description: str
    data: Data
    made_up: bool = False
    stage: str = ""
    fixes: str = ""
    may_follow: tuple[str, ...]
    may_precede: tuple[str, ...]
    paper: str
    options: dict[str, Any]


class Baseline(Answer):
    model_id: str
    name: str
    size: Size


class Candidate(Answer):
    """One row of a comparison: the figures of the report of the job that made this model."""

    model_id: str
    name: str
    job_id: str
    steps: tuple[str, ...]
    size: Size
    size_ratio: float
    latency: tuple[Latency, ...]
    traffic: Traffic | None
    quality: Quality | None
    agreement: Agreement | None
    verdict: Verdict
    targets_met: bool | None
    pareto_optimal: bool


class Comparison(Answer):
    """Results side by side, smallest first."""

    id: str
    created_at: datetime
    baseline: Baseline
    candidates: tuple[Candidate, ...]
    axes: tuple[str, ...]
    notes: tuple[str, ...]


T = TypeVar("T")


class Page(Answer, Generic[T]):
    items: tuple[T, ...]
    next_page_token: str | None = None
