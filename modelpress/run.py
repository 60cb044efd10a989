"""The runner protocol: what a supervisor writes into a run directory, and what a runner writes back.

RUN_DIR/job.json        a `RunSpec`; file names in it are relative to RUN_DIR
RUN_DIR/in/…            input files, read-only by convention
RUN_DIR/out/…           result files
RUN_DIR/checkpoints/…   what trainings leave for the next attempt, which finds it there; without the folder nothing is
RUN_DIR/out/result.json a `RunResult`, written last, to a temporary name and renamed

Events are JSON lines (`Event`) on the file descriptor that the runner is given.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from modelpress.jobs import Extra, Format, JobData, Progress, Recipe, Strict
from modelpress.models import DatasetSpec, ModelSpec
from modelpress.report import Report


class InputFile(Strict):
    path: str
    filename: str = Field(description="as the user named it; the suffix is a hint, never trusted")


class ModelFile(InputFile):
    architecture: InputFile | None = Field(
        None, description="the model whose architecture the weights in this file belong to, where they come alone"
    )


class Limits(Strict):
    threads: int = Field(1, ge=1)
    memory_bytes: int | None = None


class InspectModel(Strict):
    kind: Literal["inspect_model"] = "inspect_model"
    model: ModelFile
    limits: Limits = Limits()


class InspectDataset(Strict):
    kind: Literal["inspect_dataset"] = "inspect_dataset"
    dataset: InputFile
    limits: Limits = Limits()


class Compress(Strict):
    kind: Literal["compress"] = "compress"
    model: ModelFile
    teacher: ModelFile | None = None
    data: JobData[InputFile] = JobData[InputFile]()
    request: Recipe
    device: Literal["auto", "cpu", "cuda"] = "auto"
    sandbox: tuple[str, ...] = Field((), description="the levels that hold for this runner, for the report")
    limits: Limits = Limits()


RunSpec = Annotated[InspectModel | InspectDataset | Compress, Field(discriminator="kind")]


class RunError(Strict):
    """Why a run failed, in words for the user. `code` is stable; `retryable`: another attempt may end otherwise."""

    code: str
    message: str
    retryable: bool = False


class ResultFile(Strict):
    format: Format | Extra
    path: str


class RunResult(Strict):
    error: RunError | None = None
    model: ModelSpec | None = None
    dataset: DatasetSpec | None = None
    files: tuple[ResultFile, ...] = ()
    report: Report | None = None
    peak_memory_bytes: int | None = None


class ProgressEvent(Strict):
    type: Literal["progress"] = "progress"
    progress: Progress


class MetricEvent(Strict):
    """A figure of a running step, such as a training loss. A loss that diverges is worth telling: NaN passes."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    type: Literal["metric"] = "metric"
    step: str
    values: dict[str, float]


class WarningEvent(Strict):
    type: Literal["warning"] = "warning"
    message: str


Event = Annotated[ProgressEvent | MetricEvent | WarningEvent, Field(discriminator="type")]
