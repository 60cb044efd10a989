"""What a recipe works on: the model as it came, the data, the teacher, and what was inferred from them."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modelpress.matching import WHOLE, Form, MismatchError, check_teacher, label_form, unread_labels
from modelpress.models import Signature
from modelpress.run import Compress, ModelFile
from modelpress.steps import Data
from workers.engine.context import Batches, Context
from workers.engine.data import DatasetBatches
from workers.engine.data.guesses import rows_read
from workers.engine.data.invented import InventedBatches
from workers.engine.delivery import check_formats
from workers.engine.errors import InvalidDataError, InvalidModelError
from workers.engine.graph import Graph
from workers.engine.inspection import Checked, check_reading, signature
from workers.engine.job_data import JobBatches
from workers.engine.measuring.figures import Conditions
from workers.engine.measuring.quality import choose_metrics
from workers.engine.ops.normalization import BatchNorm
from workers.engine.originals import open_model, runnable
from workers.engine.reporter import Reporter
from workers.engine.runtime import open_session
from workers.engine.shapes import FREE_SIZES
from workers.engine.task import ResolvedTask, resolve_device, resolve_runtime, resolve_task

STEPS_SHARE = 0.9
"""Of the time budget: a training that takes all it may have leaves the rest for writing and measuring."""


@dataclass(frozen=True)
class Prepared:
    original: Graph
    file: Path
    """The ONNX file that stands for the original when it is measured."""
    checked: Checked | None
    """Inputs that the original has answered alike in both runtimes; None where made-up ones do not run."""
    data: dict[str, Batches]
    """By use."""
    conditions: Conditions
    context: Context


def prepare(spec: Compress, run_dir: Path, reporter: Reporter) -> Prepared:
    """Raises EngineError where model, teacher, data and task do not go together."""
    request, began = spec.request, time.monotonic()
    _seed(request.seed)
    device = resolve_device(spec.device)
    original, file = _read_original(spec, run_dir, reporter)
    check_formats(original, request.formats, run_dir)
    checked = check_reading(original, open_session(file, spec.limits.threads, exact=True))
    names = signature(original)
    inputs = JobBatches(spec.data, names, request.task, run_dir)
    task = resolve_task(names, request.task, inputs.labelled)
    if task.note:
        reporter.warn(task.note)
    _check(spec, task, inputs)
    data: dict[str, Batches] = dict(inputs.by_use)
    teacher = None if spec.teacher is None else _read_teacher(spec.teacher, run_dir, names)
    conditions = Conditions(
        signature=names,
        task=task,
        form=_form(names, task, inputs.by_use.get("evaluate")),
        metric=request.task.metric,
        threads=spec.limits.threads,
        runtime=resolve_runtime(request.runtime, device),
        seed=request.seed,
        free=checked.free if checked is not None else FREE_SIZES[0],
        deadline=reporter.deadline,
        rows={spec.name: rows for spec in original.inputs if (rows := rows_read(original, spec)) is not None},
        teacher=teacher and teacher[1],
    )
    own = resolve_runtime("auto", device)
    if conditions.runtime != own:
        reporter.warn(
            f"the result is made for {conditions.runtime}, but this worker is {own}: its latency will be another there"
        )
    original.module.eval().to(device)
    if teacher is not None:
        teacher[0].module.eval().to(device)
    context = Context(
        train=data.get("train"),
        calibrate=_calibration(spec, data, _experienced(original, teacher and teacher[0]), conditions, reporter),
        teacher=original if teacher is None else teacher[0],
        original=original,
        device=device,
        runtime=conditions.runtime,
        task=task.kind,
        output=task.output,
        class_axis=task.class_axis,
        blank=task.blank,
        seed=request.seed,
        deadline=began + STEPS_SHARE * (reporter.deadline - began),
        progress=reporter.progress,
        metric=reporter.metric,
        checkpoints=checkpoints if (checkpoints := run_dir / "checkpoints").is_dir() else None,
    )
    return Prepared(original, file, checked, data, conditions, context)


def _check(spec: Compress, task: ResolvedTask, inputs: JobBatches) -> None:
    """Refuse now what would be refused after training."""
    request, drop = spec.request, spec.request.targets.max_drop
    if request.task.kind == "none":
        for step in request.recipe:
            if step.reads_labels():
                raise InvalidDataError(unread_labels(step.step))
    if task.kind != "none":
        for metric in (request.task.metric, drop.metric if drop is not None else None):
            choose_metrics(task.kind, metric, task.classes)
    if task.kind == "classification":
        for batches in inputs.by_use.values():
            batches.check_classes()


def _form(names: Signature, task: ResolvedTask, batches: DatasetBatches | None) -> Form | None:
    """What the labels for evaluation are; None where there are none."""
    if batches is None or batches.label_spec is None or task.kind == "none":
        return None
    output, labels = names.outputs[task.output], batches.label_spec
    whole = output.dtype in WHOLE
    return label_form(task.kind, output.shape, labels.shape, task.class_axis, whole=whole, one_each=labels.distribution)


def _read_original(spec: Compress, run_dir: Path, reporter: Reporter) -> tuple[Graph, Path]:
    format_, graph = open_model(spec.model, run_dir)
    file = runnable(graph, format_, spec.model, run_dir)
    if file != run_dir / spec.model.path:
        reporter.warn(
            f"the original came as {format_}: its size and speed are those of the same graph as one ONNX file"
        )
    for note in graph.notes:
        reporter.warn(note)
    return graph, file


def _read_teacher(teacher: ModelFile, run_dir: Path, names: Signature) -> tuple[Graph, Path]:
    """Its graph, and the ONNX file that answers in its stead when the result is compared with it."""
    format_, graph = open_model(teacher, run_dir)
    try:
        check_teacher(names, signature(graph))
    except MismatchError as error:
        raise InvalidModelError(error.detail) from error
    return graph, runnable(graph, format_, teacher, run_dir, "teacher")


def _experienced(original: Graph, teacher: Graph | None) -> Graph:
    """The graph whose batch norms tell what real inputs are: the teacher's where it has any."""
    norms = teacher is not None and any(isinstance(leaf, BatchNorm) for leaf in teacher.module.modules())
    return teacher if teacher is not None and norms else original


def _calibration(
    spec: Compress, data: dict[str, Batches], experienced: Graph, conditions: Conditions, reporter: Reporter
) -> Batches:
    found = data.get("calibrate") or data.get("train")
    if found is not None:
        return found
    recipe = spec.request.recipe
    wanting = [step.step for step in recipe if step.data_needed() == Data.CALIBRATE or step.makes_up()]
    if wanting:
        reporter.warn(f"{', '.join(wanting)} had no data and used made-up inputs; a few hundred real ones do better")
    trains = any(step.data_needed() == Data.UNLABELLED for step in recipe)
    seed, free, left = conditions.seed, conditions.free, conditions.deadline
    task = conditions.task
    classes = (task.output, task.class_axis) if task.decides and task.class_axis is not None else None
    return InventedBatches(experienced, seed=seed, free=free, deadline=left, train=trains, classes=classes)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (for libraries that draw from the global generator)
    torch.manual_seed(seed)
