"""Tells the supervisor where a job stands: fractions of the whole, weighted by what each part usually takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from modelpress.jobs import Progress
from modelpress.run import Event, MetricEvent, ProgressEvent, WarningEvent
from modelpress.steps import Data, Step
from workers.engine.errors import DeadlineError

COST = {Data.NONE: 1.0, Data.CALIBRATE: 4.0, Data.UNLABELLED: 20.0, Data.TRAIN: 20.0}
READING = WRITING = 0.5
MEASURING = 4.0
INTERVAL = 0.2
"""Seconds between two progress events of one part, at least."""


class Reporter:
    def __init__(self, emit: Callable[[Event], None], recipe: Sequence[Step], deadline: float) -> None:
        self._emit = emit
        self._names = ["reading", *(step.step for step in recipe), "writing", "measuring"]
        costs = [READING, *(COST[step.data_needed()] for step in recipe), WRITING, MEASURING]
        self._shares = [cost / sum(costs) for cost in costs]
        self._part = 0
        self._told = 0.0
        self.deadline = deadline
        self.warnings: list[str] = []

    def begin(self, part: int) -> None:
        """0 is reading, then the steps of the recipe from 1, then writing and measuring."""
        self._part = part
        self._told = 0.0
        self.progress(0.0, "")

    def progress(self, fraction: float, message: str) -> None:
        """Of the running part. Raises DeadlineError once the job's time is over."""
        now = time.monotonic()
        if now > self.deadline:
            raise DeadlineError(
                f"the job's time budget ran out during {self._names[self._part]}; allow more seconds, or fewer epochs"
            )
        if now - self._told < INTERVAL:
            return
        self._told = now
        steps = len(self._names) - 3
        done = sum(self._shares[: self._part]) + self._shares[self._part] * min(max(fraction, 0.0), 1.0)
        self._emit(
            ProgressEvent(
                progress=Progress(
                    step=self._names[self._part],
                    index=min(max(self._part - 1, 0), steps - 1),
                    steps=steps,
                    fraction=min(done, 1.0),
                    message=message,
                )
            )
        )

    def metric(self, values: dict[str, float]) -> None:
        self._emit(MetricEvent(step=self._names[self._part], values=values))

    def warn(self, message: str) -> None:
        """Kept for the report too; said once."""
        if message not in self.warnings:
            self.warnings.append(message)
            self._emit(WarningEvent(message=message))
