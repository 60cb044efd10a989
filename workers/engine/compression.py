"""A compress job: read, apply the recipe, write, and measure what was written."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modelpress.models import ModelSpec
from modelpress.report import LayerReport, Report, StepReport
from modelpress.run import Compress, Event, ResultFile, RunResult
from modelpress.steps import Data
from workers.engine.context import Batches, Context
from workers.engine.data import SyntheticBatches
from workers.engine.graph import Graph
from workers.engine.inspection import Checked, check_agreement, check_reading, signature
from workers.engine.job_data import JobBatches
from workers.engine.measuring.environment import environment
from workers.engine.measuring.figures import Conditions, Figures, Subject, measure
from workers.engine.measuring.layers import layer_table
from workers.engine.measuring.verdict import Evidence, judge
from workers.engine.readers import read_model
from workers.engine.recipe import apply_recipe, check_recipe
from workers.engine.reporter import Reporter
from workers.engine.runtime import Session, arrays, open_session
from workers.engine.shapes import FREE_SIZES, stats
from workers.engine.task import resolve_device, resolve_runtime, resolve_task
from workers.engine.writers.onnx import write_onnx

RESULT = "out/model.onnx"
REWRITTEN = "original.onnx"


@dataclass(frozen=True)
class Made:
    """What is left of the graphs once the result is written: they themselves are gone before sessions take memory."""

    original: Subject
    result: Subject
    model: ModelSpec
    layers: tuple[LayerReport, ...]
    steps: tuple[StepReport, ...]
    data: dict[str, Batches]
    conditions: Conditions
    device: torch.device


def compress(spec: Compress, run_dir: Path, emit: Callable[[Event], None]) -> RunResult:
    """Raises EngineError where the model, the data or a step stands in the way."""
    reporter = Reporter(emit, spec.request.recipe, time.monotonic() + spec.request.budget.seconds)
    made = _make(spec, run_dir, reporter)
    reporter.begin(len(spec.request.recipe) + 2)
    figures = measure(made.original, made.result, made.data, made.conditions, reporter.progress)
    return RunResult(
        model=made.model,
        files=(ResultFile(format="onnx", path=RESULT),),
        report=_report(spec, made, figures, reporter),
    )


def _make(spec: Compress, run_dir: Path, reporter: Reporter) -> Made:
    request, threads = spec.request, spec.limits.threads
    _seed(request.seed)
    reporter.begin(0)
    device = resolve_device(spec.device)
    original, file, checked = _read_original(spec, run_dir, reporter)
    names = signature(original)
    inputs = JobBatches(spec.data, names, request.task, run_dir)
    task = resolve_task(names, request.task, inputs.labelled)
    if task.note:
        reporter.warn(task.note)
    data: dict[str, Batches] = dict(inputs.by_use)
    runtime = resolve_runtime(request.runtime, device)
    conditions = Conditions(
        signature=names,
        task=task,
        metric=request.task.metric,
        threads=threads,
        runtime=runtime,
        seed=request.seed,
        free=checked.free if checked is not None else FREE_SIZES[0],
        deadline=reporter.deadline,
    )
    context = Context(
        train=data.get("train"),
        calibrate=_calibration(spec, data, conditions, reporter),
        teacher=_teacher(spec, run_dir, device) or original,
        original=original,
        device=device,
        runtime=runtime,
        task=task.kind,
        output=task.output,
        seed=request.seed,
        deadline=reporter.deadline,
        progress=reporter.progress,
        metric=reporter.metric,
    )
    check_recipe(request.recipe, context)
    applied = apply_recipe(request.recipe, original.copy(), context, reporter)

    reporter.begin(len(request.recipe) + 1)
    original.module.cpu()
    applied.graph.module.cpu()
    result = run_dir / RESULT
    result.write_bytes(write_onnx(applied.graph))
    _check_written(applied.graph, open_session(result, threads), checked)
    held = stats(applied.graph)
    return Made(
        original=Subject(file, stats(original)),
        result=Subject(result, held),
        model=ModelSpec(
            format="onnx", signature=signature(applied.graph), stats=held, notes=tuple(applied.graph.notes)
        ),
        layers=layer_table(original, applied.graph, applied.untouched),
        steps=tuple(applied.steps),
        data=data,
        conditions=conditions,
        device=device,
    )


def _read_original(spec: Compress, run_dir: Path, reporter: Reporter) -> tuple[Graph, Path, Checked | None]:
    """The graph, the ONNX file that stands for the original when it is measured, and inputs that both took."""
    file = run_dir / spec.model.path
    format_, graph = read_model(file)
    if format_ != "onnx":
        file = run_dir / REWRITTEN
        file.write_bytes(write_onnx(graph))
        reporter.warn(
            f"the original is a {format_} file: its size and its speed are those of the same graph, unchanged, as ONNX"
        )
    for note in graph.notes:
        reporter.warn(note)
    return graph, file, check_reading(graph, open_session(file, spec.limits.threads))


def _check_written(graph: Graph, session: Session, checked: Checked | None) -> None:
    """Raises InvalidModelError unless the stored bytes answer as the graph that was written does."""
    if checked is not None:
        check_agreement(graph, checked.inputs, session.run(arrays(checked.inputs)))


def _teacher(spec: Compress, run_dir: Path, device: torch.device) -> Graph | None:
    if spec.teacher is None:
        return None
    _, graph = read_model(run_dir / spec.teacher.path)
    graph.module.eval().to(device)
    return graph


def _calibration(
    spec: Compress, data: dict[str, Batches], conditions: Conditions, reporter: Reporter
) -> Batches | None:
    found = data.get("calibrate") or data.get("train")
    if found is not None:
        return found
    wanting = [step.step for step in spec.request.recipe if step.data_needed() == Data.CALIBRATE]
    if wanting:
        reporter.warn(
            f"{', '.join(wanting)} had no calibration data and used made-up inputs; a few hundred real ones do better"
        )
    return SyntheticBatches(conditions.signature, conditions.seed, conditions.free)


def _report(spec: Compress, made: Made, figures: Figures, reporter: Reporter) -> Report:
    task = made.conditions.task
    judged = made.conditions.signature.outputs[task.output].name
    comparison = figures.comparison
    size_ratio = figures.size[0].bytes / figures.size[1].bytes
    judgement = judge(
        Evidence(
            size_ratio=size_ratio,
            packed_ratio=figures.size[0].zstd_bytes / figures.size[1].zstd_bytes,
            latency=figures.latency,
            quality=comparison.quality,
            agreement=next((found for found in comparison.agreement if found.output == judged), None),
            made_up=figures.source == "synthetic",
            broken=comparison.broken,
            classes=task.class_axis is not None,
        ),
        spec.request.targets,
    )
    if figures.source == "synthetic":
        reporter.warn("there was no data: agreement was measured on made-up inputs, which says little about real ones")
    for output in comparison.silent:
        reporter.warn(f"the output {output!r} could not be compared: the original answers NaN or nothing there")
    return Report(
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        targets_met=judgement.targets_met,
        targets=judgement.targets,
        size=figures.size,
        size_ratio=size_ratio,
        latency=figures.latency,
        peak_memory_bytes=figures.peak_memory_bytes,
        quality=comparison.quality,
        agreement=comparison.agreement,
        agreement_data=figures.source,
        layers=made.layers,
        steps=made.steps,
        warnings=tuple(reporter.warnings),
        environment=environment(made.device, spec.limits.threads, spec.sandbox),
    )


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (for libraries that draw from the global generator)
    torch.manual_seed(seed)
