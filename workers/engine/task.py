"""What a job's outputs mean and where its result will run: inferred where it was left out, and said in a note."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from modelpress.jobs import Runtime, Task, TaskKind
from modelpress.matching import MismatchError, check_labels, judged_output
from modelpress.models import DatasetSpec, Dim, Signature, TensorSpec
from workers.engine.errors import InvalidDataError
from workers.engine.measuring.environment import own_runtime

SCORES = re.compile(r"logit|prob|score|class|softmax|pred", re.IGNORECASE)
"""Names of outputs that are taken for class scores where no labels say so."""


@dataclass(frozen=True)
class ResolvedTask:
    kind: TaskKind
    output: int
    """Index of the output that is judged."""
    class_axis: int | None
    """Axis of the judged output that holds the class scores; None where there are none."""
    classes: int | None
    note: str | None = None


def resolve_task(signature: Signature, task: Task, labelled: list[tuple[str, DatasetSpec]]) -> ResolvedTask:
    """`labelled`: name of the array of labels and dataset, for each dataset that has labels.

    Raises InvalidDataError where the task names what the model has not, or labels do not fit it.
    """
    try:
        output = judged_output(signature, task)
        kinds = {check_labels(signature, spec, task, name) for name, spec in labelled}
    except MismatchError as error:
        raise InvalidDataError(error.detail) from error
    note = None
    if len(kinds) > 1:
        raise InvalidDataError("the datasets' labels do not mean the same: some are class numbers, some are values")
    if kinds:
        kind = kinds.pop()
    elif task.kind is not None:
        kind = task.kind
    elif _looks_like_scores(output):
        kind = "classification"
        note = f"the output {output.name!r} is taken for class scores, by its name and shape; task.kind says otherwise"
    else:
        kind = "none"
    axis = _class_axis(output, labelled) if kind == "classification" else None
    size = output.shape[axis] if axis is not None else None
    classes = size if isinstance(size, int) and size > 0 else None
    return ResolvedTask(kind, signature.outputs.index(output), axis, classes, note)


def resolve_runtime(runtime: Runtime, device: torch.device) -> Runtime:
    if runtime != "auto":
        return runtime
    return "cuda" if device.type == "cuda" else own_runtime()


def resolve_device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def _looks_like_scores(output: TensorSpec) -> bool:
    fixed = output.shape[-1] if len(output.shape) == 2 else None
    return (
        output.dtype.startswith("float") and isinstance(fixed, int) and fixed >= 2 and bool(SCORES.search(output.name))
    )


def _class_axis(output: TensorSpec, labelled: list[tuple[str, DatasetSpec]]) -> int | None:
    """The last axis for scores a position, the second for scores a pixel; None for one score that decides.

    Labels that are class numbers tell which; without such, four dims are those of images.
    """
    rank = len(output.shape)
    if rank < 2:
        return None
    axis = 1 if rank >= 4 else rank - 1
    for name, spec in labelled:
        positions = next(array for array in spec.arrays if array.name == name).shape[1:]
        fitting = [own for own in (rank - 1, 1) if _fits(output.shape[1:own] + output.shape[own + 1 :], positions)]
        if fitting:
            axis = fitting[0]
            break
    return None if output.shape[axis] == 1 else axis


def _fits(declared: tuple[Dim, ...], found: tuple[Dim, ...]) -> bool:
    return len(declared) == len(found) and all(
        not isinstance(a, int) or a < 0 or a == b for a, b in zip(declared, found, strict=True)
    )
