"""An engine for tests of what surrounds the engine: an upload is a small program, and it obeys the evil ones too."""

import ctypes
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from modelpress.jobs import Progress
from modelpress.models import DatasetSpec, ModelSpec, ModelStats, Signature
from modelpress.report import Environment, Report, Size, Verdict
from modelpress.run import (
    Compress,
    Event,
    InspectDataset,
    InspectModel,
    MetricEvent,
    ProgressEvent,
    ResultFile,
    RunError,
    RunResult,
    RunSpec,
    WarningEvent,
)

Emit = Callable[[Event], None]
Spec = InspectModel | InspectDataset | Compress

MODEL = ModelSpec(format="onnx", signature=Signature(inputs=(), outputs=()), stats=ModelStats())
SIZE = Size(bytes=1, zstd_bytes=1, parameters=1, nonzeros=1, macs=None)


def preload() -> None:
    """There is nothing to load."""


def run(run_dir: Path, emit: Emit) -> None:
    spec: Spec = TypeAdapter(RunSpec).validate_json((run_dir / "job.json").read_bytes())
    upload = spec.dataset if isinstance(spec, InspectDataset) else spec.model
    orders = json.loads((run_dir / upload.path).read_bytes())
    say(f"{orders['act']} in {run_dir}")
    globals()[orders.pop("act")](spec, run_dir, emit, **orders)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def succeed(spec: Spec, run_dir: Path, emit: Emit, seconds: float = 0, result: str = "smaller") -> None:
    progress(emit, "half_precision", 0.5)
    time.sleep(seconds)
    if isinstance(spec, InspectModel):
        answer = RunResult(model=MODEL)
    elif isinstance(spec, InspectDataset):
        answer = RunResult(dataset=DatasetSpec(examples=1, arrays=()))
    else:
        (run_dir / "out/model.onnx").write_text(result)
        files = (ResultFile(format="onnx", path="out/model.onnx"),)
        answer = RunResult(model=MODEL, files=files, report=report(spec))
    write_result(run_dir, answer.model_dump_json())


def succeed_in_formats(spec: Compress, run_dir: Path, emit: Emit, paths: dict[str, str]) -> None:
    for path in paths.values():
        (run_dir / path).write_text(path)
    files = tuple(ResultFile(format=name, path=path) for name, path in paths.items())
    write_result(run_dir, RunResult(model=MODEL, files=files, report=report(spec)).model_dump_json())


def tell_architecture(spec: InspectModel | Compress, run_dir: Path, emit: Emit, of: str = "model") -> None:
    architecture = getattr(spec, of).architecture
    say("none" if architecture is None else (run_dir / architecture.path).read_text())
    succeed(spec, run_dir, emit)


def report(spec: Compress) -> Report:
    environment = Environment(
        cpu="", isa=(), device="cpu", threads=1, python="", torch="", onnxruntime="", sandbox=spec.sandbox
    )
    return Report(
        verdict=Verdict.PASSED, size=(SIZE, SIZE), size_ratio=1, latency=(), warnings=("slow",), environment=environment
    )


def progress(emit: Emit, step: str, fraction: float) -> None:
    emit(ProgressEvent(progress=Progress(step=step, index=0, steps=1, fraction=fraction)))


def write_result(run_dir: Path, text: str) -> None:
    (run_dir / "out/result.json").write_text(text)


def refuse(spec: Spec, run_dir: Path, emit: Emit, code: str = "invalid_model", retryable: bool = False) -> None:
    error = RunError(code=code, message=f"{run_dir}/in/x is no model", retryable=retryable)
    write_result(run_dir, RunResult(error=error).model_dump_json())


def hang(spec: Spec, run_dir: Path, emit: Emit) -> None:
    progress(emit, "hanging", 0.1)
    time.sleep(3600)


def crash(spec: Spec, run_dir: Path, emit: Emit) -> None:
    ctypes.string_at(0)


def fail(spec: Spec, run_dir: Path, emit: Emit) -> None:
    raise ZeroDivisionError("unforeseen")


def leave(spec: Spec, run_dir: Path, emit: Emit, code: int) -> None:
    os._exit(code)


def allocate(spec: Spec, run_dir: Path, emit: Emit) -> None:
    held = []
    while True:
        held.append(bytearray(16 << 20))


def metrics(spec: Spec, run_dir: Path, emit: Emit, count: int) -> None:
    for number in range(count):
        emit(MetricEvent(step="distillation", values={"number": number, "loss": float("nan")}))
    emit(WarningEvent(message="nul \0 inside"))
    succeed(spec, run_dir, emit)


def train(
    spec: Compress, run_dir: Path, emit: Emit, epochs: int, seconds: float = 0, crashes_at: int | None = None
) -> None:
    """Goes on from its checkpoint. Crashes once at most: an attempt that went on does not."""
    checkpoint = run_dir / "checkpoints/0/training-0.pt"
    checkpoint.parent.mkdir(exist_ok=True)
    began = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for epoch in range(began + 1, epochs + 1):
        time.sleep(seconds)
        emit(MetricEvent(step="distillation", values={"epoch": epoch}))
        checkpoint.with_suffix(".new").write_text(str(epoch))
        checkpoint.with_suffix(".new").rename(checkpoint)
        if epoch == crashes_at and not began:
            os._exit(1)
    succeed(spec, run_dir, emit)


def talk(spec: Spec, run_dir: Path, emit: Emit, lines: int) -> None:
    for number in range(lines):
        say(f"line {number} of a long story about {run_dir}")
    os.write(3, b"no event\n" + b"x" * 100_000 + b"\n")
    succeed(spec, run_dir, emit)


def bear_children(spec: Spec, run_dir: Path, emit: Emit, then: dict[str, Any]) -> None:
    """Children in sessions of their own, as something that wants to outlive the run would make them."""
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv("/bin/sleep", ["modelpress-test-orphan", "3600"])
            os._exit(0)
    globals()[then.pop("act")](spec, run_dir, emit, **then)


def answer(spec: Spec, run_dir: Path, emit: Emit, text: str) -> None:
    write_result(run_dir, text)


def answer_with_link(spec: Spec, run_dir: Path, emit: Emit, target: str, name: str) -> None:
    succeed(spec, run_dir, emit)
    (run_dir / "out" / name).unlink()
    (run_dir / "out" / name).symlink_to(target)


def answer_with_path(spec: Compress, run_dir: Path, emit: Emit, path: str) -> None:
    files = (ResultFile(format="onnx", path=path),)
    write_result(run_dir, RunResult(model=MODEL, files=files, report=report(spec)).model_dump_json())


def answer_twice(spec: Compress, run_dir: Path, emit: Emit) -> None:
    (run_dir / "out/model.onnx").write_text("smaller")
    files = (ResultFile(format="onnx", path="out/model.onnx"),) * 2
    write_result(run_dir, RunResult(model=MODEL, files=files, report=report(spec)).model_dump_json())


def answer_with_long_names(spec: Compress, run_dir: Path, emit: Emit) -> None:
    (run_dir / "out/model.onnx").write_text("smaller")
    files = (ResultFile(format="onnx", path="out/model.onnx"),)
    named = MODEL.model_copy(update={"notes": ("n" * (2 << 20),)})
    write_result(run_dir, RunResult(model=named, files=files, report=report(spec)).model_dump_json())


def answer_without_numbers(spec: Compress, run_dir: Path, emit: Emit) -> None:
    (run_dir / "out/model.onnx").write_text("smaller")
    files = (ResultFile(format="onnx", path="out/model.onnx"),)
    told = RunResult(model=MODEL, files=files, report=report(spec)).model_dump(mode="json")
    told["report"]["size_ratio"] = float("nan")
    write_result(run_dir, json.dumps(told))


def spy(spec: Spec, run_dir: Path, emit: Emit, paths: list[str], port: int) -> None:
    """Tells in the log what can be seen and done from in here."""
    found: dict[str, Any] = {
        "environment": sorted(os.environ),
        "files": [str(path) for path in Path("/proc/self/fd").iterdir()],
    }
    for path in paths:
        try:
            place = Path(path)
            found[path] = [str(entry) for entry in place.iterdir()] if place.is_dir() else len(place.read_bytes())
        except OSError as error:
            found[path] = type(error).__name__
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        found["network"] = "open"
    except OSError as error:
        found["network"] = type(error).__name__
    try:
        (run_dir.parent / "planted").touch()
        found["planted"] = "done"
    except OSError as error:
        found["planted"] = type(error).__name__
    say(json.dumps(found))
    succeed(spec, run_dir, emit)
