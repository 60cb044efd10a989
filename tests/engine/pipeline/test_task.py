"""What is inferred of a task, and where it is refused."""

import pytest
import torch

from modelpress.jobs import Task
from modelpress.models import ArraySpec, DatasetSpec, Signature, TensorSpec
from workers.engine.errors import InvalidDataError
from workers.engine.task import resolve_device, resolve_runtime, resolve_task


def signature(name, *shape, dtype="float32"):
    x = TensorSpec(name="x", dtype="float32", shape=("batch", 8))
    return Signature(inputs=(x,), outputs=(TensorSpec(name=name, dtype=dtype, shape=("batch", *shape)),))


def labels(*shape, dtype="int64", low=0, high=4):
    spec = ArraySpec(name="y", dtype=dtype, shape=(20, *shape), minimum=low, maximum=high)
    return [("y", DatasetSpec(examples=20, arrays=(spec,)))]


@pytest.mark.parametrize(
    ("outputs", "given", "kind", "axis", "classes"),
    [
        (signature("y", 5), labels(), "classification", 1, 5),
        (signature("y", "time", 5), labels(7), "classification", 2, 5),
        (signature("y", 5, 16, 16), labels(16, 16), "classification", 1, 5),
        (signature("y", 5, 12), labels(12), "classification", 1, 5),
        (signature("y", 5, 1, 1), labels(1, 1), "classification", 1, 5),
        (signature("y", 1, 16, 16), labels(16, 16, high=1), "classification", None, None),
        (signature("y", 1), labels(high=1), "classification", None, None),
        (signature("y", 5), labels(5, dtype="float32", low=None, high=None), "regression", None, None),
        (signature("logits", 5), [], "classification", 1, 5),
        (signature("embedding", 384), [], "none", None, None),
        (signature("logits", 5, dtype="int64"), [], "none", None, None),
    ],
)
def test_kind_axis_and_number_of_classes(outputs, given, kind, axis, classes):
    task = resolve_task(outputs, Task(), given)
    assert (task.kind, task.class_axis, task.classes) == (kind, axis, classes)


def test_a_guess_by_the_name_is_said():
    assert "task.kind" in resolve_task(signature("logits", 5), Task(), []).note
    assert resolve_task(signature("y", 5), Task(), labels()).note is None


def test_what_is_asked_for_wins():
    assert resolve_task(signature("logits", 5), Task(kind="none"), []).kind == "none"
    assert resolve_task(signature("embedding", 5), Task(kind="classification"), []).class_axis == 1


def test_without_labels_four_dims_are_those_of_images():
    asked = Task(kind="classification")
    assert resolve_task(signature("y", 5, 16, 16), asked, []).class_axis == 1
    assert resolve_task(signature("y", 7, 5), asked, []).class_axis == 2


def test_an_output_is_chosen_by_name_or_number():
    two = Signature(inputs=(), outputs=(*signature("a", 3).outputs, *signature("b", 4).outputs))
    assert resolve_task(two, Task(output="b"), []).output == 1
    assert resolve_task(two, Task(output=1), []).output == 1
    with pytest.raises(InvalidDataError, match="no output 'c'"):
        resolve_task(two, Task(output="c"), [])


def test_sequences_and_embeddings_are_asked_for():
    spoken = resolve_task(signature("y", "time", 5), Task(kind="ctc", blank=4), labels(9))
    assert (spoken.kind, spoken.class_axis, spoken.classes, spoken.blank) == ("ctc", 2, 5, 4)
    for given in (labels(), labels(1), labels(5, dtype="float32", low=None, high=None)):
        assert resolve_task(signature("y", 5), Task(kind="embedding"), given).kind == "embedding"


@pytest.mark.parametrize(
    ("outputs", "asked", "given", "said"),
    [
        (signature("y", 5), Task(kind="ctc"), labels(9), "ctc needs an output of real numbers of shape"),
        (signature("y", 7, 5), Task(kind="ctc"), labels(), "whole numbers of shape"),
        (signature("y", 7, 5), Task(kind="ctc"), labels(9, high=5), "has 5 classes"),
        (signature("y", 7, 5), Task(kind="ctc", blank=5), labels(9), "has 5 classes"),
        (signature("y", 7, 5), Task(kind="embedding"), labels(), "embedding needs an output of real numbers of shape"),
        (signature("y", 5), Task(kind="embedding"), labels(4, dtype="float32", low=None, high=None), "do not fit"),
    ],
)
def test_sequences_and_embeddings_that_do_not_fit_are_refused(outputs, asked, given, said):
    with pytest.raises(InvalidDataError, match=said):
        resolve_task(outputs, asked, given)


def test_datasets_must_mean_the_same():
    mixed = [*labels(high=3), *labels(4, dtype="float32", low=None, high=None)]
    with pytest.raises(InvalidDataError, match="do not mean the same"):
        resolve_task(signature("y", 4), Task(), mixed)


def test_runtime_and_device():
    cpu = torch.device("cpu")
    assert resolve_runtime("cpu-avx2", cpu) == "cpu-avx2"
    assert resolve_runtime("auto", cpu).startswith("cpu-")
    assert resolve_runtime("auto", torch.device("cuda")) == "cuda"
    assert resolve_device("cpu") == cpu
