"""A job's progress on a screen, from the events that a service sends."""

import io
from datetime import UTC, datetime
from itertools import count
from typing import Any

from rich.console import Console

from modelpress.cli.progress import Lines, follow
from modelpress.client import JobEvent
from modelpress.jobs import JobStatus

NUMBERS = count(1)


def event(kind: str, **data: Any) -> JobEvent:
    return JobEvent(id=next(NUMBERS), type=kind, attempt=1, data=data, created_at=datetime.now(UTC))


def progress(step: str, fraction: float, message: str = "") -> JobEvent:
    return event("progress", step=step, index=0, steps=2, fraction=fraction, message=message)


def shown(*events: JobEvent) -> tuple[JobStatus, list[str]]:
    console = Console(file=io.StringIO(), width=120)
    status = follow(events, Lines(console))
    return status, console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # it is the StringIO above


def test_a_line_for_each_step_and_each_tenth() -> None:
    status, lines = shown(
        event("status", status="queued"),
        event("status", status="running"),
        progress("distillation", 0.31, "epoch 1 of 2"),
        progress("distillation", 0.32, "epoch 1 of 2"),
        event("metric", step="distillation", values={"loss": 0.123456}),
        progress("distillation", 0.41, "epoch 2 of 2"),
        progress("measuring", 0.9),
        event("metric", step="distillation", values={"validation_loss": 0.5}),  # late, of the step before
        progress("measuring", 0.95, "latency"),
        event("status", status="succeeded"),
    )
    assert status is JobStatus.SUCCEEDED
    assert [line.split()[:2] for line in lines] == [
        ["0%", "queued"],
        ["0%", "running"],
        ["31%", "distillation"],
        ["41%", "distillation"],
        ["90%", "measuring"],
        ["100%", "succeeded"],
    ]
    assert lines[4].endswith("measuring")
    assert lines[3].endswith("epoch 2 of 2  loss 0.1235")


def test_warnings_and_new_attempts_stay_in_sight() -> None:
    status, lines = shown(
        event("warning", message="[layer] stays float"),
        event("status", status="queued", error={"code": "worker_lost", "message": "The worker fell silent."}),
        event("status", status="failed", error={"code": "worker_lost", "message": "It was tried 3 times."}),
    )
    assert status is JobStatus.FAILED
    assert "! [layer] stays float" in lines
    assert "attempt 1: The worker fell silent. The job is tried again." in lines
