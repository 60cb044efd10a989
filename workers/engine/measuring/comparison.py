"""One pass over the examples through both files: agreement of every output, and quality where there are labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelpress.report import Agreement, Quality
from workers.engine.context import Batches
from workers.engine.errors import DeadlineError
from workers.engine.interface.exposing import Interface
from workers.engine.measuring.agreement import AgreementMeter
from workers.engine.measuring.quality import QualityMeter
from workers.engine.runtime import Session, arrays

BATCH = 256
VALUES = 2 << 20
"""Of the inputs of one batch, so that memory stays constant however large an example is."""
PROBED = 256
"""Examples by whose answers logits and probabilities are told apart."""


@dataclass(frozen=True)
class Comparison:
    quality: Quality | None
    agreement: tuple[Agreement, ...]
    broken: int
    """Examples for which the result answers NaN, infinity or another shape, where the original does not."""
    before: tuple[Agreement, ...]
    """Of the original with the teacher; empty without one."""
    silent: tuple[str, ...]
    """Outputs that could not be compared: the original itself answers NaN there, or nothing."""


def compare(
    original: Session,
    result: Session,
    batches: Batches,
    interface: Interface | None = None,
    *,
    teacher: Session | None = None,
    meters: tuple[list[AgreementMeter], list[AgreementMeter]],
    quality: tuple[int, QualityMeter] | None,
    examples: int,
    deadline: float,
) -> Comparison:
    """Run the first `examples` through both; through `interface` where the result takes or answers another form.

    `teacher`: what both are compared with in its stead. `meters`: of the result and of the original, one an output, in
    order; the latter are for a teacher. `quality`: index of the judged output and its meter, where there are labels.
    Raises DeadlineError after `deadline` (on `time.monotonic()`), InvalidModelError where a file cannot run.
    """
    size = batch_size(batches)
    for start in range(0, examples, size):
        if time.monotonic() > deadline:
            raise DeadlineError("the time budget ran out while the result was being measured; allow more seconds")
        inputs, labels = batches.take(torch.arange(start, min(start + size, examples)))
        before = original.run_all(arrays(inputs))
        after = result.run_all(arrays(inputs if interface is None else interface.own(inputs)))
        own, wanted = before, before if teacher is None else teacher.run_all(arrays(inputs))
        if interface is not None:
            after = _mapped(interface.read, after)
            own, wanted = _mapped(interface.asked, before), _mapped(interface.asked, wanted)
        for meter, one, other in zip(meters[0], wanted, after, strict=True):
            meter.add(one, other)
        if teacher is not None:
            for meter, one, other in zip(meters[1], wanted, own, strict=True):
                meter.add(one, other)
        if quality is not None and labels is not None:
            output, judge = quality
            judge.add(before[output], after[output], labels.numpy())
    agreements, earlier = ([meter.result() for meter in side] for side in meters)
    return Comparison(
        quality=quality[1].result() if quality is not None else None,
        agreement=tuple(agreement for agreement in agreements if agreement is not None),
        broken=max((meter.broken for meter in meters[0]), default=0),
        before=tuple(agreement for agreement in earlier if agreement is not None),
        silent=tuple(meter.output for meter, found in zip(meters[0], agreements, strict=True) if found is None),
    )


def _mapped(change: Callable[[Sequence[Tensor]], Sequence[Tensor]], answers: list[NDArray]) -> list[NDArray]:
    return arrays(change([torch.from_numpy(answer) for answer in answers]))


def first_answers(session: Session, batches: Batches, output: int) -> NDArray:
    """One output for some examples, by which it is told what its numbers are."""
    size, examples = batch_size(batches), min(batches.examples, PROBED)
    rows = (torch.arange(start, min(start + size, examples)) for start in range(0, examples, size))
    return np.concatenate([session.run_all(arrays(batches.take(part)[0]))[output] for part in rows])


def batch_size(batches: Batches) -> int:
    one, _ = batches.take(torch.arange(1))
    values = sum(tensor.numel() for tensor in one)
    return max(1, min(BATCH, VALUES // max(1, values)))
