"""What a job is asked to do, and the words for where it stands. Shared by client, service, worker and engine."""

from enum import StrEnum
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from modelpress.steps import AnyStep

Format = Literal["onnx", "pt2", "safetensors", "packed"]
"""Of results; each has a writer of its name in `workers/engine/writers`."""
Extra = Literal["ticket"]
"""Models that a step gives beside its result, as ONNX files of their own. In the alphabet they come after all formats,
because a model's first file is the one that stands for it."""
Runtime = Literal["auto", "cpu-avx2", "cpu-vnni", "cpu-arm", "cuda"]
TaskKind = Literal["classification", "regression", "ctc", "embedding", "none"]
Metric = Literal[
    "accuracy", "top5_accuracy", "f1", "mse", "mae", "correlation", "cosine", "token_error_rate", "nearest_neighbor"
]

Ref = TypeVar("Ref")


def _once(formats: tuple[Format, ...]) -> tuple[Format, ...]:
    return tuple(dict.fromkeys(formats))


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class Task(Strict):
    """What the model's outputs mean, so that quality can be measured. What is left out is inferred where it can be."""

    kind: TaskKind | None = Field(
        None,
        description="inferred from the labels and the output's shape, but for ctc (class scores over time, and padded "
        "sequences of class numbers as labels) and embedding (vectors, and class numbers or wanted vectors as labels)",
    )
    output: int | str | None = Field(
        None, description="index or name of the output that is judged; the first by default"
    )
    label: str | None = Field(None, description="array of the dataset that holds the labels")
    blank: int = Field(0, ge=0, description="of ctc: the class that stands for nothing")
    metric: Metric | None = Field(None, description="the figure that targets and the verdict look at")


class MaxDrop(Strict):
    metric: Metric | None = Field(None, description="the task's own metric by default")
    absolute: float = Field(gt=0, le=1, description="0.01 is one percentage point of accuracy")


class Targets(Strict):
    max_drop: MaxDrop | None = None
    size_ratio: float | None = Field(
        None, gt=1, description="original bytes / result bytes, at least; of the first of the job's formats"
    )
    latency_ratio: float | None = Field(None, gt=0, description="original / result at batch 1, at least")


class Budget(Strict):
    seconds: float = Field(3600, gt=0, le=7 * 86400, description="the job fails when it runs longer")


Labels = Annotated[
    dict[Annotated[str, Field(max_length=63)], Annotated[str, Field(max_length=255)]], Field(max_length=32)
]


class JobData(Strict, Generic[Ref]):
    """Data by use, each optional. `calibrate` falls back to `train`; each step says what it needs."""

    train: Ref | None = None
    calibrate: Ref | None = None
    evaluate: Ref | None = None


class Recipe(Strict):
    """The part of a job that says what is done, wherever model and data come from."""

    recipe: list[AnyStep] = Field(min_length=1, max_length=16)
    task: Task = Task()
    targets: Targets = Targets()
    budget: Budget = Budget()
    formats: Annotated[tuple[Format, ...], AfterValidator(_once)] = Field(
        ("onnx",), min_length=1, description="files to make of the result; sizes are judged by the first"
    )
    runtime: Runtime = Field("auto", description="where the result will run; auto is this worker's own CPU")
    seed: int = Field(0, ge=0, lt=2**63)


class Progress(Strict):
    step: str = Field(description="name of the step, or reading, measuring, writing")
    index: int = Field(ge=0, description="position of the step in the recipe, from 0")
    steps: int = Field(ge=0)
    fraction: float = Field(ge=0, le=1, description="of the whole job")
    message: str = ""
