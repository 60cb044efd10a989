"""The report: what was measured on the stored bytes of original and result, in the runtime a user would use."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from modelpress.jobs import Format, Metric, Strict


class Verdict(StrEnum):
    PASSED = "passed"
    DEGRADED = "degraded"
    """Quality or agreement fell further than was asked for, or than the default bounds."""
    NO_GAIN = "no_gain"
    """The file is not smaller, the model is not faster, and its quality is not better."""


class Size(Strict):
    bytes: int
    zstd_bytes: int = Field(description="after zstd -19 (-9 from 32 MiB on): what a download with compression costs")
    packed_bytes: int | None = Field(
        None, description="as a packed file, which pays where weights are sparse or few; None in reports from before it"
    )
    parameters: int
    nonzeros: int
    macs: int | None


class FileSize(Strict):
    format: Format
    bytes: int
    ratio: float = Field(description="original bytes / bytes of this file")


class Timing(Strict):
    median_ms: float
    p95_ms: float


class Latency(Strict):
    """Original and result in one process, interleaved, warm."""

    batch: int
    threads: int
    original: Timing
    result: Timing
    ratio: float = Field(description="median over the pairs of original / result: above 1 is faster")
    ratio_low: float = Field(description="lower end of the ratio's 95 % interval")
    ratio_high: float
    pairs: int


class Traffic(Strict):
    """What one example takes on the wire, by (original, result); open dimensions, such as time, count once."""

    sent_bytes: tuple[int, int]
    answered_bytes: tuple[int, int]


class Quality(Strict):
    metric: Metric
    n: int
    original: float
    result: float
    change: float = Field(description="result - original; for errors (mse, mae) a rise is a loss")
    low: float = Field(description="lower end of the change's 95 % interval (paired)")
    high: float
    others: dict[str, tuple[float, float]] = Field(default_factory=dict, description="metric: (original, result)")


class Agreement(Strict):
    """How closely the result answers as the original does, for one output."""

    output: str
    n: int
    top1: float | None = Field(
        None, description="share of the same arg max, for class scores; share of equal values, for whole numbers"
    )
    cosine: float
    snr_db: float | None = Field(None, description="None: bit for bit the same")
    r2: float | None = Field(
        None, description="1 - squared error / variance of the original's answers; None where those do not vary"
    )
    kl: float | None = Field(None, description="mean KL(original || result) of the softmax, nats")
    max_abs: float


class LayerReport(Strict):
    name: str
    type: str
    parameters_before: int
    parameters_after: int
    nonzeros: int
    sparsity: float
    bits: float
    snr_db: float | None = Field(
        None, description="of the weights, each output channel up to its scale; None: unchanged"
    )
    note: str = Field("", description="why it was left alone, where it was")


class StepReport(Strict):
    step: str
    seconds: float
    notes: tuple[str, ...] = ()
    metrics: dict[str, float] = Field(default_factory=dict)
    series: dict[str, tuple[float | None, ...]] = Field(
        default_factory=dict, description="figures that a step measured again and again, such as after each round"
    )


class TargetOutcome(Strict):
    target: str
    wanted: float
    measured: float | None
    met: bool


class Environment(Strict):
    cpu: str
    isa: tuple[str, ...]
    device: str
    threads: int
    python: str
    torch: str
    onnxruntime: str
    sandbox: tuple[str, ...] = ()


class Report(Strict):
    version: Literal[1] = 1
    verdict: Verdict
    reasons: tuple[str, ...] = Field((), description="the verdict in sentences; the worst first")
    targets_met: bool | None = None
    targets: tuple[TargetOutcome, ...] = ()
    size: tuple[Size, Size] = Field(description="(original, result); the result's first file, where there are several")
    size_ratio: float
    files: tuple[FileSize, ...] = Field((), description="of the result, the first of the job's formats first")
    latency: tuple[Latency, ...]
    traffic: Traffic | None = Field(None, description="None where the result takes and answers what the original does")
    peak_memory_bytes: tuple[int, int] | None = Field(
        None, description="(original, result) of one ONNX Runtime session"
    )
    quality: Quality | None = None
    agreement: tuple[Agreement, ...] = ()
    agreement_with: Literal["original", "teacher"] = Field(
        "original", description="an uploaded teacher where there is one: it is what the result is to be like"
    )
    agreement_before: tuple[Agreement, ...] = Field((), description="of the original with the uploaded teacher")
    agreement_data: Literal["evaluate", "calibrate", "train", "synthetic"] = "synthetic"
    layers: tuple[LayerReport, ...] = ()
    steps: tuple[StepReport, ...] = ()
    warnings: tuple[str, ...] = ()
    environment: Environment
