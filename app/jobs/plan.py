"""All that can be known of a job before it runs: is it legal, is its data enough, does it fit. Pure functions."""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from app.jobs.prediction import predict
from app.jobs.schemas import JobRequest, Plan, StepPlan, Use
from app.problems import FieldError, Invalid
from modelpress.jobs import Task, TaskKind
from modelpress.matching import (
    MismatchError,
    check_labels,
    check_teacher,
    class_axis,
    class_count,
    fitting_metrics,
    judged_output,
    label_array,
    match,
    unread_labels,
)
from modelpress.models import DatasetSpec, ModelSpec
from modelpress.steps import Data, IllegalOrderError, check_order

USES: tuple[Use, ...] = ("train", "calibrate", "evaluate")


@dataclass(frozen=True)
class Material:
    """What the request's ids stand for."""

    model: ModelSpec
    model_bytes: int
    teacher: ModelSpec | None
    data: dict[Use, DatasetSpec]


def make_plan(request: JobRequest, material: Material) -> Plan:
    """Raises Invalid with everything that is wrong, not only the first."""
    errors = [*_order(request), *_data_needed(request), *_formats(request), *_teacher(material)]
    task, misfits = _fit(request, material)
    errors += misfits
    if errors:
        raise Invalid.at(*errors)
    steps = []
    for step in request.recipe:
        use = _use(request, step.data_needed())
        dataset = getattr(request.data, use) if use else None
        made_up = use is None and step.makes_up()
        steps.append(StepPlan(step=step, needs=step.data_needed(), uses=use, dataset=dataset, made_up=made_up))
    prediction = predict(material.model, material.model_bytes, request.recipe, request.formats[0])
    return Plan(resolved_recipe=request.recipe, steps=steps, task=task, prediction=prediction)


def _order(request: JobRequest) -> Iterator[FieldError]:
    try:
        check_order(request.recipe)
    except IllegalOrderError as error:
        yield FieldError(pointer=f"/recipe/{error.index}/step", detail=str(error))


def _data_needed(request: JobRequest) -> Iterator[FieldError]:
    for index, step in enumerate(request.recipe):
        needs = Data.TRAIN if step.reads_labels() else step.data_needed()
        if needs is Data.TRAIN and request.task.kind == "none":
            yield FieldError(pointer="/task/kind", detail=unread_labels(step.step))
            continue
        if needs is Data.NONE or step.makes_up() or _use(request, needs):
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
    errors: list[FieldError] = []
    labels: dict[Use, str] = {}
    kinds: dict[Use, TaskKind] = {}
    for use, dataset in material.data.items():
        try:
            found = match(signature, dataset, task).labels
            if found is not None:
                labels[use], kinds[use] = found, check_labels(signature, dataset, task, found)
            elif needed := _who_needs_labels(request, use):
                errors.append(_no_labels(use, needed, task, dataset))
        except MismatchError as error:
            errors.append(FieldError(pointer=error.pointer or f"/data/{use}", detail=error.detail))
    if len(set(kinds.values())) > 1:
        said = ", ".join(f"{use}: {kind}" for use, kind in kinds.items())
        errors.append(FieldError(pointer="/data", detail=f"the labels do not mean the same ({said}); set task.kind"))
    used = next((use for use in ("evaluate", "train", "calibrate") if use in kinds), None)
    if used is not None:
        task = task.model_copy(update={"output": output.name, "kind": kinds[used], "label": labels[used]})
    given = [label_array(output, material.data[use], name) for use, name in labels.items()]
    return task, [*errors, *_metrics(request, task, class_count(output, class_axis(output, given)))]


def _who_needs_labels(request: JobRequest, use: Use) -> str | None:
    if use == "evaluate" and request.task.label is not None:
        return "measuring by labels"
    readers = (step for step in request.recipe if use == "train" and step.reads_labels())
    step = next(readers, None)
    if step is None:
        return None
    return step.step if step.data_needed() is Data.TRAIN else f"{step.step} with label_weight"


def _no_labels(use: Use, needed_by: str, task: Task, dataset: DatasetSpec) -> FieldError:
    names = ", ".join(array.name for array in dataset.arrays)
    if task.label is not None:
        detail = f"{needed_by} needs the array {task.label!r}, and the dataset for {use} has: {names}"
        return FieldError(pointer="/task/label", detail=detail)
    detail = f"{needed_by} needs labels, and none of {names} is known as such; name the array in task.label"
    return FieldError(pointer=f"/data/{use}", detail=detail)


def _metrics(request: JobRequest, task: Task, classes: int | None) -> Iterator[FieldError]:
    drop = request.targets.max_drop
    known = fitting_metrics(task.kind or "none", classes)
    for pointer, metric in (("/task/metric", task.metric), ("/targets/max_drop/metric", drop and drop.metric)):
        if known and metric is not None and metric not in known:
            detail = f"{metric} does not measure {task.kind}; there are: {', '.join(sorted(known))}"
            yield FieldError(pointer=pointer, detail=detail)


def _formats(request: JobRequest) -> Iterator[FieldError]:
    """What the steps make of any model and a format cannot hold."""
    for step in request.recipe:
        for index, name in enumerate(request.formats):
            if name in step.cannot_hold:
                detail = f"{name} cannot hold {step.cannot_hold[name]}, which {step.step} makes; take onnx"
                yield FieldError(pointer=f"/formats/{index}", detail=detail)


def dataset_ids(request: JobRequest) -> dict[Use, UUID]:
    return {use: found for use in USES if (found := getattr(request.data, use)) is not None}
