"""What a job's outputs mean and where its result will run: inferred where it was left out, and said in a note."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from modelpress.jobs import Runtime, Task, TaskKind
from modelpress.matching import (
    FLOATS,
    MismatchError,
    check_labels,
    class_axis,
    class_count,
    judged_output,
    label_array,
)
from modelpress.models import DatasetSpec, Signature, TensorSpec
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
    decides: bool = False
    """Whether the judged output holds scores, from which classes are chosen."""
    note: str | None = None
    blank: int = 0
    """Of CTC: the class that stands for nothing."""


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
        taken = f"the output {output.name!r} is taken for class scores, by its name and shape"
        note = f"{taken}; set task.kind where it is something else"
    else:
        kind = "none"
    labels = [label_array(output, spec, name) for name, spec in labelled]
    axis = class_axis(output, labels) if kind == "classification" else len(output.shape) - 1 if kind == "ctc" else None
    decides = kind in ("classification", "ctc") and output.dtype in FLOATS
    return ResolvedTask(
        kind, signature.outputs.index(output), axis, class_count(output, axis), decides, note, task.blank
    )


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
