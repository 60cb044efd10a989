"""Says in words for the user why a runner ended without a result."""

import signal
from pathlib import Path

from modelpress.run import RunError
from workers.runner import CRASHED, NO_SANDBOX, OUT_OF_MEMORY

CLOSE_TO_LIMIT = 0.9
MEBIBYTE = 1 << 20


def crash(status: int, peak_bytes: int, limit_bytes: int, *, kernel_killed: bool) -> RunError:
    """`status` as `workers.pool` has it. `kernel_killed`: the kernel ended a process for want of memory."""
    full = status < 0 and peak_bytes >= CLOSE_TO_LIMIT * limit_bytes
    if status == OUT_OF_MEMORY or full or (status == -signal.SIGKILL and kernel_killed):
        return out_of_memory(peak_bytes, limit_bytes)
    if status == NO_SANDBOX:
        message = "The worker could not close its sandbox; the job's log says which part. It was not run without."
        return RunError(code="sandbox_failed", message=message, retryable=True)
    if status < 0:
        end = f"was ended by {signal.Signals(-status).name}"
    elif status == CRASHED:
        end = "failed in a way that was not foreseen"
    else:
        end = f"ended with exit code {status}"
    message = f"The runner {end}; the job's log shows its last words."
    return RunError(code="runner_crashed", message=message, retryable=True)


def out_of_memory(peak_bytes: int, limit_bytes: int) -> RunError:
    message = (
        f"The run needed more memory than it may have: its peak was {peak_bytes / MEBIBYTE:,.0f} MiB, the limit is "
        f"{limit_bytes / MEBIBYTE:,.0f} MiB. Use smaller batches or less data, or a worker with more memory."
    )
    return RunError(code="out_of_memory", message=message)


def deadline_exceeded(seconds: float) -> RunError:
    message = f"The job ran longer than its {seconds:g} s. Allow it more, or ask for fewer epochs or less data."
    return RunError(code="deadline_exceeded", message=message)


def worker_failed() -> RunError:
    message = "The worker failed beside the run itself; its own log has the details for whoever runs it."
    return RunError(code="worker_failed", message=message, retryable=True)


def worker_lost() -> RunError:
    message = "The worker that had the job fell silent: it was ended, or its machine or the database was out of reach."
    return RunError(code="worker_lost", message=message, retryable=True)


def kernel_memory_kills() -> int:
    """How many processes the kernel has ended for want of memory since it started, as far as it tells."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0
