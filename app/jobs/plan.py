"""All that can be known of a job before it runs: is it legal, is its data enough, does it fit. Pure functions."""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from app.jobs.schemas import JobRequest, Plan, Prediction, StepPlan, Use
from app.problems import FieldError, Invalid
from modelpress.jobs import Task, TaskKind
from modelpress.matching import MismatchError, check_labels, check_teacher, judged_output, match
from modelpress.models import DatasetSpec, ModelSpec
from modelpress.steps import Data, IllegalOrderError, check_order

USES: tuple[Use, ...] = ("train", "calibrate", "evaluate")
METRICS: dict[TaskKind, frozenset[str]] = {
    "classification": frozenset({"accuracy", "top5_accuracy", "f1"}),
    "regression": frozenset({"mse", "mae", "correlation", "cosine"}),
}
BITS = {"half_precision": 16, "static_quantization": 8, "dynamic_quantization": 8}
"""Of a stored weight after a step; the others leave 32."""


@dataclass(frozen=True)
class Material:
    """What the request's ids stand for."""

    model: ModelSpec
    model_bytes: int
    teacher: ModelSpec | None
    data: dict[Use, DatasetSpec]


def make_plan(request: JobRequest, material: Material) -> Plan:
    """Raises Invalid with everything that is wrong, not only the first."""
    errors = [*_order(request), *_data_needed(request), *_teacher(material)]
    task, misfits = _fit(request, material)
    errors += misfits
    if errors:
        raise Invalid("; ".join(f"{error.pointer}: {error.detail}" for error in errors[:3]), errors=errors)
    steps = []
    for step in request.recipe:
        use = _use(request, step.data_needed())
        dataset = getattr(request.data, use) if use else None
        steps.append(StepPlan(step=step, needs=step.data_needed(), uses=use, dataset=dataset))
    return Plan(resolved_recipe=request.recipe, steps=steps, task=task, prediction=_prediction(request, material))


def _order(request: JobRequest) -> Iterator[FieldError]:
    try:
        check_order(request.recipe)
    except IllegalOrderError as error:
        yield FieldError(pointer=f"/recipe/{error.index}/step", detail=str(error))


def _data_needed(request: JobRequest) -> Iterator[FieldError]:
    for index, step in enumerate(request.recipe):
        needs = step.data_needed()
        if needs is Data.NONE or _use(request, needs):
            continue
        send = {
            Data.CALIBRATE: "needs some inputs to calibrate on: send data.calibrate (or data.train), without labels",
            Data.UNLABELLED: "needs training inputs: send data.train; labels are not looked at",
            Data.TRAIN: "needs labelled training data: send data.train",
        }[needs]
        yield FieldError(pointer=f"/recipe/{index}", detail=f"{step.step} {send}")


def _use(request: JobRequest, needs: Data) -> Use | None:
    """Which of the request's data a step with that need is given."""
    uses: tuple[Use, ...] = ()
    if needs is Data.CALIBRATE:
        uses = ("calibrate", "train")
    elif needs is not Data.NONE:
        uses = ("train",)
    return next((use for use in uses if getattr(request.data, use) is not None), None)


def _teacher(material: Material) -> Iterator[FieldError]:
    if material.teacher is None:
        return
    try:
        check_teacher(material.model.signature, material.teacher.signature)
    except MismatchError as error:
        yield FieldError(pointer=error.pointer, detail=error.detail)


def _fit(request: JobRequest, material: Material) -> tuple[Task, list[FieldError]]:
    """The task with what the data tells of it, and where data and model do not fit."""
    signature, task = material.model.signature, request.task
    try:
        output = judged_output(signature, task)
    except MismatchError as error:
        return task, [FieldError(pointer=error.pointer, detail=error.detail)]
    errors: dict[tuple[str, str], FieldError] = {}
    inferred: dict[str, object] = {"output": output.name}
    for use, dataset in material.data.items():
        try:
            labels = match(signature, dataset, task).labels
            if not _labels_matter(request, use):
                continue
            if labels is not None:
                inferred |= {"kind": check_labels(signature, dataset, task, labels), "label": labels}
            elif task.label is not None or use == "train":
                pointer = "/task/label" if task.label else f"/data/{use}"
                errors[pointer, use] = FieldError(pointer=pointer, detail=_no_labels(use, task, dataset))
        except MismatchError as error:
            found = FieldError(pointer=error.pointer or f"/data/{use}", detail=error.detail)
            errors[found.pointer, found.detail] = found
    task = task.model_copy(update=inferred)
    metrics = METRICS.get(task.kind or "none")
    for pointer, metric in _metrics(request):
        if metrics is not None and metric not in metrics:
            detail = f"{metric} does not measure {task.kind}; there are: {', '.join(sorted(metrics))}"
            errors[pointer, detail] = FieldError(pointer=pointer, detail=detail)
    return task, list(errors.values())


def _labels_matter(request: JobRequest, use: Use) -> bool:
    trained = any(step.data_needed() is Data.TRAIN for step in request.recipe)
    return use == "evaluate" or (use == "train" and trained)


def _no_labels(use: Use, task: Task, dataset: DatasetSpec) -> str:
    names = ", ".join(array.name for array in dataset.arrays)
    if task.label is not None:
        return f"the dataset for {use} has no array {task.label!r}; it has: {names}"
    return f"fine_tuning needs labels, and none of {names} is known as such; name the array in task.label"


def _metrics(request: JobRequest) -> Iterator[tuple[str, str]]:
    if request.task.metric is not None:
        yield "/task/metric", request.task.metric
    if request.targets.max_drop is not None and request.targets.max_drop.metric is not None:
        yield "/targets/max_drop/metric", request.targets.max_drop.metric


def _prediction(request: JobRequest, material: Material) -> Prediction:
    bits = min((BITS.get(step.step, 32) for step in request.recipe), default=32)
    parameters = material.model.stats.parameters
    other = max(0, material.model_bytes - 4 * parameters)
    size = min(material.model_bytes, other + parameters * bits // 8)
    return Prediction(
        size_bytes=size,
        size_ratio=round(material.model_bytes / max(size, 1), 2),
        basis=f"{parameters} parameters at {bits} bits; layers that have to stay float are not foreseen",
    )


def dataset_ids(request: JobRequest) -> dict[Use, UUID]:
    return {use: found for use in USES if (found := getattr(request.data, use)) is not None}
