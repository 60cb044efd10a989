from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_wrap_validator_function

from app.web.fields import DatasetId, JobId, ModelId, Timestamp
from modelpress.jobs import JobData, JobStatus, Labels, Progress, Recipe, Task
from modelpress.report import Environment, Report, Verdict
from modelpress.steps import AnyStep, Data

Queue = Literal["cpu", "gpu"]
Use = Literal["train", "calibrate", "evaluate"]


class OrAuto:
    """Marks a list that may also be the word `auto`, which is read as the empty list that nothing else can be."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any, steps: ValidatorFunctionWrapHandler) -> Any:
            if isinstance(value, str) and value != "auto":
                raise ValueError('this is a list of steps, or "auto"')
            return [] if value == "auto" else steps(value)

        return no_info_wrap_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"const": "auto", "type": "string"}]}


class JobRequest(Recipe):
    """A recipe, the model it is applied to, and the data that is there for it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "mdl_01a20cbff754710999f0730c2de549af",
                    "recipe": [
                        {"step": "magnitude_pruning", "sparsity": 0.7},
                        {"step": "distillation", "epochs": 2},
                        {"step": "static_quantization"},
                    ],
                    "data": {
                        "train": "dst_01a20cbff9407227a6ba2cb796bc8aee",
                        "evaluate": "dst_01a20cc2e31076b487ebb511d7fc13d8",
                    },
                    "targets": {"max_drop": {"metric": "accuracy", "absolute": 0.01}, "size_ratio": 3.5},
                }
            ]
        }
    )

    recipe: Annotated[list[AnyStep], Field(min_length=1, max_length=16), OrAuto()] = Field(
        description="steps in their order; auto: by the model's kind, its data and the targets: see `resolved_recipe`"
    )
    model: ModelId
    teacher: ModelId | None = Field(None, description="what distillation learns from; the model itself by default")
    data: JobData[DatasetId] = JobData[DatasetId]()
    queue: Queue = "cpu"
    labels: Labels = Field(default_factory=dict, description="your own marks, to find the job by")

    def stored_recipe(self) -> dict[str, Any]:
        """`modelpress.jobs.Recipe` with every default filled in."""
        return self.model_dump(mode="json", include=set(Recipe.model_fields))

    def digest(self) -> bytes:
        return sha256(self.model_dump_json().encode()).digest()


class StepPlan(BaseModel):
    step: AnyStep
    needs: Data
    uses: Use | None = Field(None, description="the data that this step will be given")
    made_up: bool = Field(
        False, description="no data is sent for it: made-up inputs stand in, and some hundred real ones do better"
    )
    dataset: DatasetId | None = None


class Prediction(BaseModel):
    """A rough guess from the number of parameters; only the report's figures are measured."""

    size_bytes: int
    size_ratio: float
    basis: str
    unforeseen: list[str] = Field(description="steps of which nothing can be said beforehand, left out of the figures")


class Plan(BaseModel):
    """What a job would do, with every default filled in."""

    resolved_recipe: list[AnyStep]
    steps: list[StepPlan]
    task: Task = Field(description="as given, with what was inferred from the data")
    prediction: Prediction


class JobResult(BaseModel):
    model_id: ModelId
    verdict: Verdict
    targets_met: bool | None = Field(None, description="null: no targets were set")


class JobError(BaseModel):
    """Why a job failed, as a problem."""

    type: str
    title: str = "Job failed"
    code: str
    detail: str
    retryable: bool = Field(description="whether another attempt may end otherwise")


class JobSummary(BaseModel):
    id: JobId
    status: JobStatus
    model: ModelId
    teacher: ModelId | None = None
    data: JobData[DatasetId]
    queue: str
    progress: Progress | None = None
    attempt: int
    resolved_recipe: list[AnyStep]
    request: Recipe = Field(description="all that was asked for, with every default filled in")
    result: JobResult | None = None
    error: JobError | None = None
    warnings: list[str]
    environment: Environment | None = None
    created_at: Timestamp
    started_at: Timestamp | None = Field(None, description="of the current or last attempt")
    finished_at: Timestamp | None = None
    labels: dict[str, str]


class Job(JobSummary):
    report: Report | None = None
    version: str = Field("", description="changes with anything above; the answer's ETag")

    def versioned(self) -> "Job":
        content = self.model_dump_json(exclude={"version"})
        return self.model_copy(update={"version": sha256(content.encode()).hexdigest()[:16]})


class JobEvent(BaseModel):
    """What happened to a job. `status` events name the new `status`; the last one is final."""

    id: int
    attempt: int
    type: Literal["status", "progress", "metric", "warning"]
    data: dict[str, Any]
    created_at: Timestamp


class EventPage(BaseModel):
    items: list[JobEvent]
    next_after: int = Field(description="send it as `after` for what comes next, also when there is nothing yet")
