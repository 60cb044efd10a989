"""Which array of a dataset feeds which input of a model, and which holds the labels.

The service asks this when a job is posted and the engine when it runs, so that both give the same answer.
"""

from dataclasses import dataclass
from enum import StrEnum

from modelpress.jobs import Metric, Task, TaskKind
from modelpress.models import ArraySpec, DatasetSpec, Dim, Signature, TensorSpec

LABEL_NAMES = ("labels", "label", "y", "targets")
"""Names that are taken for the labels when the task does not say which array holds them."""

IGNORED = -100
"""A class number that counts for nothing, such as padding: PyTorch's convention."""

METRICS: dict[TaskKind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "top5_accuracy", "f1"),
    "regression": ("mse", "mae", "correlation", "cosine"),
    "ctc": ("token_error_rate",),
    "embedding": ("nearest_neighbor", "cosine"),
    "none": (),
}

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
INTEGERS = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"})
WHOLE = INTEGERS | {"bool"}


Shape = tuple[Dim, ...]


class Form(StrEnum):
    """What labels are to the answers of a model."""

    CLASSES = "classes"
    """A class number where the answers have a row of class scores."""
    DISTRIBUTION = "distribution"
    """One-hot, or probabilities that sum to one over the classes."""
    INDEPENDENT = "independent"
    """A yes or no for each answer."""
    CHOICES = "choices"
    """A class number where the model answers with one itself."""
    VALUES = "values"
    """Numbers to be met: a regression."""
    SEQUENCES = "sequences"
    """Class numbers in the order in which they come over time, padded: CTC."""
    GROUPS = "groups"
    """A class number for each vector; those of one class belong together."""
    DIRECTIONS = "directions"
    """A vector that each vector should point along."""


class MismatchError(ValueError):
    """Data that does not fit. `pointer`: the field of the request at fault; empty for the dataset itself."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.detail = detail


@dataclass(frozen=True)
class Matched:
    inputs: dict[str, str]
    """Name of a model input: name of the array that feeds it."""
    labels: str | None
    """Array that holds the labels; None where the dataset has none."""
    output: str
    """Output that is judged."""


def match(signature: Signature, dataset: DatasetSpec, task: Task) -> Matched:
    """Raises MismatchError where an input finds no array, or one of another shape or type."""
    output = judged_output(signature, task)
    arrays = {array.name: array for array in dataset.arrays}
    labels = _label_name(signature, arrays, task)
    inputs: dict[str, str] = {}
    for spec in signature.inputs:
        array = arrays.get(spec.name) or _only_candidate(signature, arrays, labels)
        if array is None:
            raise MismatchError("", _not_found(spec, arrays, labels))
        _check_array(spec, array)
        inputs[spec.name] = array.name
    return Matched(inputs, labels, output.name)


def judged_output(signature: Signature, task: Task) -> TensorSpec:
    """The output that quality looks at. Raises MismatchError where the task names one that does not exist."""
    names = [output.name for output in signature.outputs]
    wanted = 0 if task.output is None else task.output
    if isinstance(wanted, str):
        if wanted not in names:
            raise MismatchError("/task/output", f"the model has no output {wanted!r}; it has: {', '.join(names)}")
        return signature.outputs[names.index(wanted)]
    if not 0 <= wanted < len(names):
        raise MismatchError("/task/output", f"the model has {len(names)} output(s), counted from 0; {wanted} is none")
    return signature.outputs[wanted]


def check_labels(signature: Signature, dataset: DatasetSpec, task: Task, labels: str) -> TaskKind:
    """What the labels are for: the task's kind, inferred where it is left out.

    Raises MismatchError where the labels do not fit the judged output in type, shape or range.
    """
    if task.kind == "none":
        return "none"
    output = judged_output(signature, task)
    array = label_array(output, dataset, labels)
    if task.kind in ("ctc", "embedding"):
        _check_unusual(task.kind, output, array, task.blank)
        return task.kind
    kind = task.kind or ("classification" if _looks_like_classes(output, array, task) else "regression")
    same_shape = _fits(output.shape[1:], array.shape[1:])
    if kind == "regression" and not (same_shape or _one_value_each(output, array)):
        raise _no_fit(output, array)
    if kind == "classification" and not same_shape:  # of the same shape they are a score for each class
        _check_classes(output, array)
    return kind


def label_array(output: TensorSpec, dataset: DatasetSpec, labels: str) -> ArraySpec:
    """The labels as they are read: a column of them loses the axis that the output has not, or has for its classes."""
    array = next(array for array in dataset.arrays if array.name == labels)
    own, given = output.shape, array.shape
    column = len(given) > 1 and given[-1] == 1
    surplus = len(given) == len(own) + 1 or (len(given) == len(own) and own[-1] != 1)
    return array.model_copy(update={"shape": given[:-1]}) if column and surplus else array


def usual_class_axis(rank: int) -> int:
    """Where classes stand as far as the rank tells: second in an image's four dims, else last."""
    return 1 if rank >= 4 else rank - 1


def class_axis(output: TensorSpec, labels: list[ArraySpec]) -> int | None:
    """The last axis for scores a position, the second for scores a pixel; None where each answer decides for itself.

    Labels that are class numbers tell which. Whole numbers are no scores.
    """
    shape, rank = output.shape, len(output.shape)
    if rank < 2 or output.dtype not in FLOATS:
        return None
    axes = (_axis_by(output, array) for array in labels)
    axis = next((axis for axis in axes if axis is not None), usual_class_axis(rank))
    return None if shape[axis] == 1 else axis


def label_form(kind: TaskKind, answers: Shape, labels: Shape, axis: int | None, *, whole: bool, one_each: bool) -> Form:
    """`axis`: that of the classes. `whole`: the answers are integers. `one_each`: `ArraySpec.distribution`."""
    if kind == "ctc":
        return Form.SEQUENCES
    if kind == "embedding":
        return Form.GROUPS if len(labels) == 1 else Form.DIRECTIONS
    if kind != "classification":
        return Form.VALUES
    if whole:
        return Form.CHOICES
    if axis is None or answers[axis] == 1:
        return Form.INDEPENDENT
    if _fits(answers[1:], labels[1:]):
        return Form.DISTRIBUTION if one_each else Form.INDEPENDENT
    return Form.CLASSES


def class_count(output: TensorSpec, axis: int | None) -> int | None:
    """None where there is no axis of classes, or its size is open."""
    size = None if axis is None else output.shape[axis]
    return size if isinstance(size, int) and size > 0 else None


def fitting_metrics(kind: TaskKind, classes: int | None, form: Form | None = None) -> tuple[Metric, ...]:
    """Those that measure such a task; top-5 accuracy says something from six classes on.

    `form`: what the labels are, where that is known.
    """
    if kind == "embedding" and form is not None:
        return ("cosine",) if form is Form.DIRECTIONS else ("nearest_neighbor",)
    return tuple(name for name in METRICS[kind] if name != "top5_accuracy" or (classes is not None and classes > 5))


def unread_labels(step: str) -> str:
    """Why a step that learns from labels cannot, where the task says that there are none."""
    return f"{step} needs labels, and with task.kind 'none' they are not looked at: leave task.kind out, or the step"


def check_teacher(model: Signature, teacher: Signature) -> None:
    """Raises MismatchError unless the teacher takes and gives tensors of the model's types and shapes, in its order."""
    pairs = (("inputs", model.inputs, teacher.inputs), ("outputs", model.outputs, teacher.outputs))
    for what, own, other in pairs:
        if len(own) != len(other):
            raise MismatchError("/teacher", f"the teacher has {len(other)} {what}, the model {len(own)}")
        for mine, theirs in zip(own, other, strict=True):
            same_type = mine.dtype == theirs.dtype or {mine.dtype, theirs.dtype} <= FLOATS
            if not same_type or not _fits(mine.shape[1:], theirs.shape[1:]):
                raise MismatchError(
                    "/teacher",
                    f"the teacher's {what[:-1]} {theirs.name!r} is {theirs.dtype} of shape {_shape(theirs.shape)}, but "
                    f"the model's {mine.name!r} is {mine.dtype} of shape {_shape(mine.shape)}",
                )


def _label_name(signature: Signature, arrays: dict[str, ArraySpec], task: Task) -> str | None:
    inputs = {spec.name for spec in signature.inputs}
    if task.label is not None:
        if task.label in inputs:
            raise MismatchError("/task/label", f"{task.label!r} is an input of the model; labels are another array")
        return task.label if task.label in arrays else None
    return next((name for name in LABEL_NAMES if name in arrays and name not in inputs), None)


def _only_candidate(signature: Signature, arrays: dict[str, ArraySpec], labels: str | None) -> ArraySpec | None:
    candidates = [array for array in arrays.values() if array.name != labels]
    return candidates[0] if len(signature.inputs) == 1 and len(candidates) == 1 else None


def _not_found(spec: TensorSpec, arrays: dict[str, ArraySpec], labels: str | None) -> str:
    others = ", ".join(f"{name!r}" for name in arrays if name != labels) or "nothing else"
    besides = f" besides the labels {labels!r}" if labels else ""
    return (
        f"no array for the model's input {spec.name!r}: the dataset has {others}{besides}; "
        "name each array as the input that it feeds"
    )


def _check_array(spec: TensorSpec, array: ArraySpec) -> None:
    if len(spec.shape) != len(array.shape) or not _fits(spec.shape[1:], array.shape[1:]):
        raise MismatchError(
            "",
            f"the array {array.name!r} has shape {_shape(array.shape)}, but the model's input {spec.name!r} wants "
            f"{_shape(spec.shape)} (the first axis counts the examples)",
        )
    if spec.dtype in FLOATS and array.dtype in INTEGERS:
        raise MismatchError(
            "",
            f"the array {array.name!r} holds {array.dtype}, but the model's input {spec.name!r} wants {spec.dtype}: "
            "scale and normalise it as for the model's training, and upload it as float32",
        )
    if not _castable(spec, array):
        raise MismatchError(
            "",
            f"the array {array.name!r} holds {array.dtype}, which the model's input {spec.name!r} of {spec.dtype} "
            "cannot take without loss",
        )


def _castable(spec: TensorSpec, array: ArraySpec) -> bool:
    if spec.dtype == array.dtype or (spec.dtype in FLOATS and array.dtype in FLOATS):
        return True
    if spec.dtype not in INTEGERS or array.dtype not in INTEGERS | {"bool"}:
        return False
    bits = int(spec.dtype.lstrip("uint"))
    low, high = (0, 2**bits - 1) if spec.dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (array.minimum is None or array.minimum >= low) and (array.maximum is None or array.maximum <= high)


def _one_value_each(output: TensorSpec, labels: ArraySpec) -> bool:
    """A number for each example, on both sides, whether or not it has an axis of its own."""
    return all(
        len(shape) == 1 or (len(shape) == 2 and (not isinstance(shape[1], int) or shape[1] in {1, -1}))
        for shape in (output.shape, labels.shape)
    )


def _looks_like_classes(output: TensorSpec, labels: ArraySpec, task: Task) -> bool:
    same_shape = _fits(output.shape[1:], labels.shape[1:])
    if labels.dtype not in WHOLE:
        return same_shape and labels.distribution and task.metric not in METRICS["regression"]
    if output.dtype in WHOLE:
        return same_shape
    if same_shape or _classes(output, labels) == 1:
        return labels.dtype == "bool" or (labels.minimum in {0, 1, IGNORED} and labels.maximum in {0, 1})
    return _classes(output, labels) is not None


def _axis_by(output: TensorSpec, labels: ArraySpec) -> int | None:
    """The axis that is left when the labels are indices into it: the last one if it can be, else the second."""
    shape = output.shape
    fitting = (axis for axis in (len(shape) - 1, 1) if _fits((shape[:axis] + shape[axis + 1 :])[1:], labels.shape[1:]))
    return next(fitting, None) if len(shape) > 1 else None


def _classes(output: TensorSpec, labels: ArraySpec) -> int | str | None:
    """Size of the class axis when the labels are indices into it ('?' where it is not known), else None."""
    axis = _axis_by(output, labels)
    return None if axis is None else class_count(output, axis) or "?"


def _check_classes(output: TensorSpec, labels: ArraySpec) -> None:
    if labels.dtype not in WHOLE:
        raise MismatchError("", f"class numbers are whole numbers; the labels {labels.name!r} hold {labels.dtype}")
    classes = _classes(output, labels)
    if classes is None:
        raise _no_fit(output, labels)
    low, high = labels.minimum, labels.maximum
    count = 2 if classes == 1 else classes  # one score decides between two classes
    if low is not None and low < 0 and low != IGNORED:
        raise MismatchError(
            "", f"the labels {labels.name!r} go down to {low}; classes are counted from 0, and {IGNORED} is left out"
        )
    if isinstance(count, int) and high is not None and high >= count:
        raise MismatchError(
            "",
            f"the labels {labels.name!r} go up to {high}, but the output {output.name!r} has {count} classes "
            f"(0 to {count - 1})",
        )


def _check_unusual(kind: TaskKind, output: TensorSpec, labels: ArraySpec, blank: int) -> None:
    """Labels of a kind that is never inferred. Raises MismatchError where they do not fit."""
    rank = len(output.shape)
    if output.dtype not in FLOATS or rank != (3 if kind == "ctc" else 2):
        wanted = "(examples, time, classes) or (time, examples, classes)" if kind == "ctc" else "(examples, values)"
        raise MismatchError("/task/kind", f"{kind} needs an output of real numbers of shape {wanted}")
    if kind == "embedding":
        grouped = labels.dtype in WHOLE and len(labels.shape) == 1
        if not grouped and not _fits(output.shape[1:], labels.shape[1:]):
            raise _no_fit(output, labels)
        return
    if labels.dtype not in WHOLE or len(labels.shape) != 2:
        raise MismatchError(
            "", f"ctc needs whole numbers of shape (examples, length) as labels, padded with {IGNORED} or the blank"
        )
    classes = class_count(output, rank - 1)
    if classes is not None and max(labels.maximum or 0, blank) >= classes:
        raise MismatchError(
            "",
            f"the output {output.name!r} has {classes} classes (0 to {classes - 1}), fewer than labels or blank name",
        )


def _no_fit(output: TensorSpec, labels: ArraySpec) -> MismatchError:
    return MismatchError(
        "",
        f"the labels {labels.name!r} of shape {_shape(labels.shape)} do not fit the output {output.name!r} of shape "
        f"{_shape(output.shape)}; name another array in task.label, or set task.kind to 'none'",
    )


def _fits(wanted: tuple[Dim, ...], given: tuple[Dim, ...]) -> bool:
    """Whether two shapes agree in rank and in every dimension that both fix."""
    return len(wanted) == len(given) and all(
        not isinstance(w, int) or not isinstance(g, int) or w < 0 or g < 0 or w == g
        for w, g in zip(wanted, given, strict=True)
    )


def _shape(shape: tuple[Dim, ...]) -> str:
    return "(" + ", ".join("?" if dim is None else str(dim) for dim in shape) + ")"
