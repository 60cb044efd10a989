"""All figures of a report that come from running two files: sizes, latency, memory, quality and agreement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from modelpress.jobs import Metric, Runtime
from modelpress.matching import Form
from modelpress.models import ModelStats, Signature
from modelpress.report import Latency, Size
from workers.engine.context import Batches
from workers.engine.data import SyntheticBatches
from workers.engine.interface.exposing import Interface, MappedBatches
from workers.engine.losses import Scores
from workers.engine.measuring.agreement import AgreementMeter
from workers.engine.measuring.comparison import Comparison, compare, first_answers
from workers.engine.measuring.latency import measure_latency
from workers.engine.measuring.memory import measure_memory
from workers.engine.measuring.quality import QualityMeter, choose_metrics
from workers.engine.measuring.reading import Reading, kind_of_scores
from workers.engine.measuring.size import measure_size
from workers.engine.runtime import Session, arrays, open_session
from workers.engine.task import ResolvedTask

Source = Literal["evaluate", "calibrate", "train", "synthetic"]

LARGE_BATCH = 32
FIVE = 5
ENOUGH_TO_AGREE = 4096
"""Examples on which agreement is measured where they were not sent for evaluation."""
MEMORY_WORTH_IT = 8 << 20
"""Bytes of the original file from which peak memory is measured: below, the runtime's own buffers drown the model."""


@dataclass(frozen=True)
class Subject:
    """A model as it is measured, and what its graph holds."""

    file: Path
    """ONNX."""
    delivered: Path
    """The file whose size counts: the same one, or the first of the formats asked for."""
    stats: ModelStats


@dataclass(frozen=True)
class Conditions:
    """Under what the two files are measured."""

    signature: Signature
    task: ResolvedTask
    form: Form | None
    """Of the labels for evaluation; None where there are none."""
    metric: Metric | None
    threads: int
    runtime: Runtime
    seed: int
    free: int
    """Length of dimensions that the model leaves open, for made-up inputs."""
    deadline: float
    interface: Interface | None = None
    """How data in the original's form are sent to the result, where it takes or answers something else."""
    teacher: Path | None = None
    """The uploaded one, in ONNX: what the result is to be like, instead of the original."""
    reference: Path | None = None
    """What the result's answers are compared with, where the original as it came answers something else."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Of the tables that inputs pick from, by input, for made-up ones."""


@dataclass(frozen=True)
class Figures:
    size: tuple[Size, Size]
    latency: tuple[Latency, ...]
    peak_memory_bytes: tuple[int, int] | None
    comparison: Comparison
    source: Source


def measure(
    original: Subject,
    result: Subject,
    data: dict[str, Batches],
    conditions: Conditions,
    progress: Callable[[float, str], None],
) -> Figures:
    """`data`: batches by use. Raises InvalidModelError where ONNX Runtime cannot run a file, DeadlineError."""
    progress(0.0, "sizes")
    size = (
        measure_size(original.delivered, original.file, original.stats),
        measure_size(result.delivered, result.file, result.stats),
    )
    memory = _memory(original.file, result.file, data, conditions)
    source, batches = _agreement_data(data, conditions)
    own = _own(batches, conditions)
    sessions = _open(original.file, result.file, conditions.threads, conditions.runtime)
    progress(0.1, "quality and agreement")
    comparison = _compare(_compared(sessions, conditions), source, batches, conditions)
    progress(0.6, "latency")
    latency = _latency((original.file, result.file), sessions, (batches, own), conditions)
    return Figures(size, latency, memory, comparison, source)


def _agreement_data(data: dict[str, Batches], conditions: Conditions) -> tuple[Source, Batches]:
    """The best data there is, else made-up inputs."""
    sources: tuple[Source, ...] = ("evaluate", "calibrate", "train")
    for source in sources:
        if source in data:
            return source, data[source]
    made_up = SyntheticBatches(conditions.signature, conditions.seed, conditions.free, conditions.rows)
    return "synthetic", made_up if conditions.interface is None else MappedBatches(made_up, conditions.interface.seen)


def _own(batches: Batches, conditions: Conditions) -> Batches:
    """The same examples as callers send them to the result."""
    return batches if conditions.interface is None else MappedBatches(batches, conditions.interface.own)


def _compared(sessions: tuple[Session, Session], conditions: Conditions) -> tuple[Session, Session]:
    if conditions.reference is None:
        return sessions
    return open_session(conditions.reference, conditions.threads, conditions.runtime), sessions[1]


def _compare(sessions: tuple[Session, Session], source: Source, batches: Batches, conditions: Conditions) -> Comparison:
    task, judged, interface = conditions.task, source == "evaluate", conditions.interface
    outputs = range(len(conditions.signature.outputs))
    meters = [_meter(index, conditions) for index in outputs], [_meter(index, conditions) for index in outputs]
    reading = Reading(conditions.form or Form.VALUES, task.class_axis, blank=task.blank)
    if task.decides:
        scores = kind_of_scores(first_answers(sessions[0], batches, task.output), task.class_axis)
        reading = replace(reading, scores=scores)
        axis = None if conditions.form is Form.INDEPENDENT else task.class_axis
        name = conditions.signature.outputs[task.output].name
        for side in meters:
            side[task.output] = AgreementMeter(name, classes=axis, scores=scores)
    quality = None
    if judged and conditions.form is not None:
        metrics = choose_metrics(task.kind, conditions.metric, task.classes, conditions.form)
        best = None if interface is None else interface.best(task.output)
        if best is not None and best < FIVE:  # five best classes cannot be looked for among fewer
            metrics = [metric for metric in metrics if metric.name != "top5_accuracy"]
        quality = task.output, QualityMeter(metrics, reading, conditions.seed)
    examples = batches.examples if judged else min(batches.examples, ENOUGH_TO_AGREE)
    return compare(
        *sessions, batches, interface, teacher=_teacher(conditions),
        meters=meters, quality=quality, examples=examples, deadline=conditions.deadline,
    )  # fmt: skip


def _teacher(conditions: Conditions) -> Session | None:
    if conditions.teacher is None:
        return None
    return open_session(conditions.teacher, conditions.threads, conditions.runtime)


def _meter(index: int, conditions: Conditions) -> AgreementMeter:
    decides = conditions.interface is not None and conditions.interface.decides(index)
    return AgreementMeter(conditions.signature.outputs[index].name, scores=Scores.SIGMOIDS if decides else None)


def _latency(
    files: tuple[Path, Path],
    sessions: tuple[Session, Session],
    batches: tuple[Batches, Batches],
    conditions: Conditions,
) -> tuple[Latency, ...]:
    """Batch 1 with one thread comes first: that is what targets and the summary look at.

    `batches`: as the original, and as the result takes them.
    """
    fixed = sessions[0].batch
    found = []
    for threads in sorted({1, conditions.threads}):
        pair = sessions if threads == conditions.threads else _open(*files, threads, conditions.runtime)
        for batch in (1, LARGE_BATCH) if fixed is None else (fixed,):
            inputs, own = (_inputs(examples, batch) for examples in batches)
            found.append(measure_latency(*pair, inputs, own=own, batch=batch, threads=threads, seed=conditions.seed))
    return tuple(latency for latency in found if latency is not None)


def _memory(original: Path, result: Path, data: dict[str, Batches], conditions: Conditions) -> tuple[int, int] | None:
    if original.stat().st_size < MEMORY_WORTH_IT:
        return None
    _, batches = _agreement_data(data, conditions)
    pairs = ((original, batches), (result, _own(batches, conditions)))
    found = [measure_memory(file, examples, conditions.runtime) for file, examples in pairs]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _open(original: Path, result: Path, threads: int, runtime: Runtime) -> tuple[Session, Session]:
    return open_session(original, threads, runtime), open_session(result, threads, runtime)


def _inputs(batches: Batches, batch: int) -> list[NDArray]:
    rows = np.arange(batch) % batches.examples
    return arrays(batches.take(torch.from_numpy(rows))[0])
