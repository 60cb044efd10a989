"""An engine that does nothing, in a form that a worker publishes."""

from collections.abc import Callable
from pathlib import Path

from modelpress.models import ModelSpec, ModelStats, Signature
from modelpress.report import Environment, Report, Size, Verdict
from modelpress.run import Event, ResultFile, RunResult


def preload() -> None:
    """There is nothing to load."""


def run(run_dir: Path, emit: Callable[[Event], None]) -> None:  # noqa: ARG001  # it has nothing to tell
    (run_dir / "out/model.onnx").write_bytes((run_dir / "job.json").read_bytes())
    environment = Environment(cpu="", isa=(), device="cpu", threads=1, python="", torch="", onnxruntime="")
    size = Size(bytes=1, zstd_bytes=1, parameters=1, nonzeros=1, macs=None)
    report = Report(verdict=Verdict.NO_GAIN, size=(size, size), size_ratio=1, latency=(), environment=environment)
    model = ModelSpec(format="onnx", signature=Signature(inputs=(), outputs=()), stats=ModelStats())
    result = RunResult(model=model, files=(ResultFile(format="onnx", path="out/model.onnx"),), report=report)
    (run_dir / "out/result.json").write_text(result.model_dump_json())
