"""A compress job: prepare, apply the recipe, write, and measure what was written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from modelpress.models import ModelSpec, Signature
from modelpress.report import FileSize, LayerReport, Report, StepReport, Traffic
from modelpress.run import Compress, Event, ResultFile, RunResult
from modelpress.steps import Data
from workers.engine.context import Batches
from workers.engine.delivery import deliver
from workers.engine.graph import Graph
from workers.engine.inspection import signature
from workers.engine.interface.cutting import copy_cut_like
from workers.engine.interface.exposing import expose
from workers.engine.interface.sizes import traffic_of
from workers.engine.measuring.environment import environment
from workers.engine.measuring.figures import Conditions, Figures, Source, Subject, measure
from workers.engine.measuring.layers import layer_table
from workers.engine.measuring.verdict import Answers, Evidence, judge
from workers.engine.preparation import Prepared, prepare
from workers.engine.recipe import apply_recipe, check_recipe
from workers.engine.reporter import Reporter
from workers.engine.shapes import stats
from workers.engine.task import ResolvedTask
from workers.engine.writers import write_model


@dataclass(frozen=True)
class Made:
    """What is left of the graphs once the result is written: they themselves are gone before sessions take memory."""

    original: Subject
    result: Subject
    files: tuple[ResultFile, ...]
    extras: tuple[ResultFile, ...]
    model: ModelSpec
    layers: tuple[LayerReport, ...]
    steps: tuple[StepReport, ...]
    data: dict[str, Batches]
    conditions: Conditions
    device: torch.device
    traffic: Traffic | None
    """None where the result takes and answers what the original does."""


def compress(spec: Compress, run_dir: Path, emit: Callable[[Event], None]) -> RunResult:
    """Raises EngineError where the model, the data or a step stands in the way."""
    reporter = Reporter(emit, spec.request.recipe, time.monotonic() + spec.request.budget.seconds)
    made = _make(spec, run_dir, reporter)
    reporter.begin(len(spec.request.recipe) + 2)
    figures = measure(made.original, made.result, made.data, made.conditions, reporter.progress)
    return RunResult(
        model=made.model,
        files=(*made.files, *made.extras),
        report=_report(spec, run_dir, made, figures, reporter),
    )


def _make(spec: Compress, run_dir: Path, reporter: Reporter) -> Made:
    reporter.begin(0)
    prepared = prepare(spec, run_dir, reporter)
    original, recipe = prepared.original, spec.request.recipe
    check_recipe(recipe, prepared.context)
    applied = apply_recipe(recipe, original.copy(), prepared.context, reporter)

    reporter.begin(len(recipe) + 1)
    original.module.cpu()
    applied.graph.module.cpu()
    conditions = _after_cut(applied.graph, prepared, run_dir, reporter)
    interface = expose(applied.graph)
    for extra in applied.extras.values():
        expose(extra)
    checked = prepared.checked and replace(prepared.checked, inputs=interface.own(prepared.checked.inputs))
    delivery = deliver(applied.graph, applied.extras, spec, run_dir, checked, reporter)
    names, held = signature(applied.graph), stats(applied.graph)
    return Made(
        original=Subject(prepared.file, prepared.file, stats(original)),
        result=Subject(delivery.measured, run_dir / delivery.files[0].path, held),
        files=delivery.files,
        extras=delivery.extras,
        model=ModelSpec(format=delivery.files[0].format, signature=names, stats=held, notes=tuple(applied.graph.notes)),
        layers=layer_table(original, applied.graph, applied.untouched),
        steps=tuple(applied.steps),
        data=prepared.data,
        conditions=replace(conditions, interface=interface) if interface.told else conditions,
        device=prepared.context.device,
        traffic=_traffic(signature(original), names) if interface.told else None,
    )


def _after_cut(graph: Graph, prepared: Prepared, run_dir: Path, reporter: Reporter) -> Conditions:
    """What is measured once the answer is an inner result: agreement with the original's own."""
    conditions = prepared.conditions
    reference = copy_cut_like(prepared.original, graph)
    if reference is prepared.original or not isinstance(reference, Graph):
        return conditions
    if conditions.form is not None:
        reporter.warn(
            f"the result ends at {graph.cut!r}, of which labels say nothing: in the place of quality, agreement with "
            "the original's own result there is measured"
        )
    file = run_dir / "reference.onnx"
    write_model(reference, "onnx", file)
    names = conditions.signature.model_copy(update={"outputs": reference.outputs})
    task = ResolvedTask("none", 0, None, None)
    return replace(conditions, signature=names, task=task, form=None, reference=file, teacher=None)


def _traffic(original: Signature, result: Signature) -> Traffic:
    sent, answered = zip(traffic_of(original), traffic_of(result), strict=True)
    return Traffic(sent_bytes=sent, answered_bytes=answered)


def _answers(conditions: Conditions) -> Answers:
    task = conditions.task
    if conditions.interface is not None and conditions.interface.decides(task.output):
        return "choices"
    if not conditions.signature.outputs[task.output].dtype.startswith(("float", "bfloat")):
        return "choices"
    return "scores" if task.decides else "values"


def _seen_in_training(spec: Compress, source: Source) -> bool:
    train, evaluate = spec.data.train, spec.data.evaluate
    trained = any(step.data_needed() in (Data.UNLABELLED, Data.TRAIN) for step in spec.request.recipe)
    same = train is not None and evaluate is not None and train.path == evaluate.path
    return trained and (source == "train" or (source == "evaluate" and same))


def _sized(file: ResultFile, run_dir: Path, original: int) -> FileSize:
    size = (run_dir / file.path).stat().st_size
    return FileSize(format=file.format, bytes=size, ratio=original / size)


def _report(spec: Compress, run_dir: Path, made: Made, figures: Figures, reporter: Reporter) -> Report:
    task = made.conditions.task
    judged = made.conditions.signature.outputs[task.output].name
    comparison = figures.comparison
    size_ratio = figures.size[0].bytes / figures.size[1].bytes
    judgement = judge(
        Evidence(
            size_ratio=size_ratio,
            packed_ratio=figures.size[0].zstd_bytes / figures.size[1].zstd_bytes,
            latency=figures.latency,
            traffic=made.traffic,
            quality=comparison.quality,
            agreement=next((found for found in comparison.agreement if found.output == judged), None),
            before=next((found for found in comparison.before if found.output == judged), None),
            made_up=figures.source == "synthetic",
            broken=comparison.broken,
            answers=_answers(made.conditions),
        ),
        spec.request.targets,
    )
    if figures.source == "synthetic":
        reporter.warn("there was no data: agreement was measured on made-up inputs, which says little about real ones")
    if _seen_in_training(spec, figures.source):
        reporter.warn(
            f"{'quality' if comparison.quality else 'agreement'} was measured on the examples that a step trained on, "
            "which flatters the result: send others as data.evaluate"
        )
    for output in comparison.silent:
        reporter.warn(f"the output {output!r} could not be compared: the original answers NaN or nothing there")
    return Report(
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        targets_met=judgement.targets_met,
        targets=judgement.targets,
        size=figures.size,
        size_ratio=size_ratio,
        files=tuple(_sized(file, run_dir, figures.size[0].bytes) for file in made.files),
        latency=figures.latency,
        traffic=made.traffic,
        peak_memory_bytes=figures.peak_memory_bytes,
        quality=comparison.quality,
        agreement=comparison.agreement,
        agreement_with="original" if made.conditions.teacher is None else "teacher",
        agreement_before=comparison.before,
        agreement_data=figures.source,
        layers=made.layers,
        steps=made.steps,
        warnings=tuple(reporter.warnings),
        environment=environment(made.device, spec.limits.threads, spec.sandbox),
    )
