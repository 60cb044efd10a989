from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.web.fields import ComparisonId, JobId, ModelId, Timestamp
from modelpress.report import Agreement, Latency, Quality, Size, Traffic, Verdict

Axis = Literal["size", "latency", "quality", "agreement"]


class ComparisonRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    baseline: ModelId
    candidates: list[ModelId] = Field(min_length=1, max_length=50, description="results of jobs on the baseline")


class Baseline(BaseModel):
    model_id: ModelId
    name: str
    size: Size


class Candidate(BaseModel):
    """One row of the table: the figures of the report of the job that made this model."""

    model_id: ModelId
    name: str
    job_id: JobId
    steps: list[str]
    size: Size
    size_ratio: float
    latency: tuple[Latency, ...]
    traffic: Traffic | None = Field(None, description="None where it takes and answers what the baseline does")
    quality: Quality | None
    agreement: Agreement | None = Field(description="of the first output that was compared")
    verdict: Verdict
    targets_met: bool | None
    pareto_optimal: bool = Field(False, description="neither another one nor the baseline is better all round")


class ComparisonResult(BaseModel):
    baseline: Baseline
    candidates: list[Candidate] = Field(description="smallest first")
    axes: list[Axis] = Field(description="what `pareto_optimal` looks at; all candidates have these figures")
    notes: list[str] = Field(description="what to mind when reading the figures side by side")


class Comparison(ComparisonResult):
    id: ComparisonId
    created_at: Timestamp
