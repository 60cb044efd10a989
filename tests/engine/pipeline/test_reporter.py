import time

import pytest

from modelpress.steps import Distillation, HalfPrecision
from workers.engine.errors import DeadlineError
from workers.engine.reporter import Reporter


def reporter(seconds=60.0):
    events = []
    return Reporter(events.append, [HalfPrecision(), Distillation()], time.monotonic() + seconds), events


def test_fractions_follow_the_cost_of_the_parts():
    tell, events = reporter()
    for part in range(5):
        tell.begin(part)
    assert [event.progress.step for event in events] == [
        "reading", "half_precision", "distillation", "writing", "measuring",
    ]  # fmt: skip
    fractions = [event.progress.fraction for event in events]
    assert fractions == sorted(fractions)
    assert fractions[3] - fractions[2] > 0.5, "training takes most of it"
    assert {event.progress.steps for event in events} == {2}
    assert [event.progress.index for event in events] == [0, 0, 1, 1, 1]


def test_a_hasty_step_does_not_flood():
    tell, events = reporter()
    tell.begin(2)
    for done in range(1000):
        tell.progress(done / 1000, "")
    assert len(events) < 20


def test_the_deadline_is_an_error_that_names_the_part():
    tell, _ = reporter(seconds=-1)
    with pytest.raises(DeadlineError, match="during reading"):
        tell.begin(0)


def test_a_warning_is_said_once():
    tell, events = reporter()
    tell.warn("mind this")
    tell.warn("mind this")
    assert [event.type for event in events] == ["warning"]
    assert tell.warnings == ["mind this"]
