"""One run: what stands in a run directory's `job.json` is done, and `out/result.json` says how it ended.

The supervisor forks warm children that call `run`; `python -m workers.engine` does the same by hand.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import get_args
from uuid import uuid4

import torch
from pydantic import TypeAdapter, ValidationError

from modelpress.jobs import Format
from modelpress.run import Compress, Event, InspectDataset, InspectModel, RunError, RunResult, RunSpec
from modelpress.steps import STEPS
from workers.engine.errors import EngineError, InvalidRunError

Emit = Callable[[Event], None]

log = logging.getLogger(__name__)

SPEC: TypeAdapter[InspectModel | InspectDataset | Compress] = TypeAdapter(RunSpec)
MEMORY_WORDS = ("not enough memory", "out of memory", "bad_alloc", "can't allocate memory", "failed to allocate")
LESS_MEMORY = {
    InspectModel: "upload a smaller model",
    InspectDataset: "upload fewer examples",
    Compress: "use smaller batches, fewer calibration examples",
    type(None): "send less data",
}
PRELOADED = (
    "numpy.ma",  # percentiles load it at their first call
    "torch._dynamo",
    "torch.optim",
    "torch.fx",
    "onnx",
    "onnxruntime",
    "workers.engine.compression",
    "workers.engine.inspection",
    "workers.engine.readers.onnx",
    "workers.engine.readers.pt2",
)


def preload() -> None:
    """Import all that a run needs, so that a forked child starts at once. Starts no thread and touches no GPU."""
    steps = (f"workers.engine.steps.{name}" for name in STEPS)
    writers = (f"workers.engine.writers.{name}" for name in get_args(Format))
    for name in (*PRELOADED, *steps, *writers):
        importlib.import_module(name)


def run(run_dir: Path, emit: Emit) -> RunResult:
    """Do the run and write its result. Never raises for what the input brings about: the result carries the error."""
    (run_dir / "out").mkdir(exist_ok=True)
    spec = None
    try:
        spec = _read_spec(run_dir)
        result = _dispatch(spec, run_dir, emit)
    except Exception as error:  # noqa: BLE001 (whatever went wrong is this run's outcome)
        result = RunResult(error=describe(error, spec))
    result = result.model_copy(update={"peak_memory_bytes": peak_memory()})
    _write(run_dir / "out", result)
    return result


def describe(error: Exception, spec: InspectModel | InspectDataset | Compress | None) -> RunError:
    """The error in words for the user. What was not foreseen goes to the log in full, and only there."""
    if isinstance(error, EngineError):
        return RunError(code=error.code, message=str(error))
    if is_out_of_memory(error):
        log.error("out of memory", exc_info=error)
        return RunError(
            code="out_of_memory",
            message=(
                f"the run needed more memory than it may have; its peak was {peak_memory() / 2**20:.0f} MiB: "
                f"{LESS_MEMORY[type(spec)]}, or use a worker with more memory"
            ),
        )
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        log.error("file limit reached", exc_info=error)
        return RunError(
            code="too_large",
            message="unpacked, what was sent or the result is larger than a run may write: send something smaller",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error("no space left", exc_info=error)
        return RunError(code="out_of_disk", message="the worker's disk is full", retryable=True)
    reference = uuid4().hex[:8]
    log.error("internal error %s", reference, exc_info=error)
    return RunError(
        code="internal_error",
        message=f"the engine failed in a way that was not foreseen; the job's log has the details under {reference}",
        retryable=isinstance(error, OSError),
    )


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in MEMORY_WORDS)


def peak_memory() -> int:
    """Bytes of this process at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _read_spec(run_dir: Path) -> InspectModel | InspectDataset | Compress:
    try:
        return SPEC.validate_json((run_dir / "job.json").read_bytes())
    except ValidationError as error:
        raise InvalidRunError(f"job.json cannot be read: {error}") from error


def _dispatch(spec: InspectModel | InspectDataset | Compress, run_dir: Path, emit: Emit) -> RunResult:
    torch.set_num_threads(spec.limits.threads)
    if isinstance(spec, InspectDataset):
        from workers.engine.inspection import inspect_dataset  # noqa: PLC0415 (preload names what is loaded early)

        return RunResult(dataset=inspect_dataset(run_dir / spec.dataset.path, run_dir))
    if isinstance(spec, InspectModel):
        from workers.engine.inspection import inspect_model  # noqa: PLC0415 (as above)

        return RunResult(model=inspect_model(spec.model, run_dir, spec.limits.threads))
    from workers.engine.compression import compress  # noqa: PLC0415 (as above)

    return compress(spec, run_dir, emit)


def _write(out: Path, result: RunResult) -> None:
    """Appears whole or not at all, after everything that it names."""
    temporary = out / "result.json.tmp"
    with temporary.open("w") as file:
        file.write(result.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(out / "result.json")
