"""Peak memory of one ONNX Runtime session: loaded and run in a forked child, so that nothing else is in the figure."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

import torch

from modelpress.jobs import Runtime
from workers.engine.context import Batches
from workers.engine.runtime import arrays, open_session

STATUS = Path("/proc/self/status")


def measure_memory(file: Path, batches: Batches, runtime: Runtime) -> int | None:
    """Bytes above an idle process, for one example and one thread. None where it cannot be found out here."""
    inputs = arrays(batches.take(torch.zeros(1, dtype=torch.int64))[0])
    if sys.platform != "linux":
        return None
    reader, writer = os.pipe()
    try:
        child = os.fork()
    except OSError:  # no further process is allowed here: the figure is left out, the job goes on
        os.close(reader)
        os.close(writer)
        return None
    if child == 0:
        _child(file, inputs, runtime, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return struct.unpack("q", answer)[0] if len(answer) == 8 else None


def _child(file: Path, inputs: list, runtime: Runtime, writer: int) -> None:
    """Never returns. Free memory of the parent is given back first, or the session would be served from it unseen."""
    status = 1
    try:
        ctypes.CDLL(None).malloc_trim(0)
        before = _kilobytes("VmRSS")
        session = open_session(file, 1, runtime)
        session.run_all(inputs)
        os.write(writer, struct.pack("q", max(0, _kilobytes("VmHWM") - before) * 1024))
        status = 0
    finally:
        os._exit(status)


def _kilobytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])
