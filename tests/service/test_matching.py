"""Which array feeds which input: one answer for the service and the engine."""

import pytest

from modelpress.jobs import Task
from modelpress.matching import (
    Matched,
    MismatchError,
    check_labels,
    check_teacher,
    class_axis,
    class_count,
    fitting_metrics,
    match,
)
from modelpress.models import ArraySpec, Dim, Signature, TensorSpec
from tests.service.examples import IMAGES, LABELLED, SCORES, array, dataset, labels

CLASSIFIER = Signature(inputs=(IMAGES,), outputs=(SCORES,))
TEXT = Signature(
    inputs=(
        TensorSpec(name="ids", dtype="int64", shape=("N", None)),
        TensorSpec(name="mask", dtype="int64", shape=("N", "length")),
    ),
    outputs=(SCORES,),
)


ONE_HOT = ArraySpec(name="y", dtype="float32", shape=(100, 4), distribution=True)


def signature(*shape: Dim, dtype: str = "float32", output: tuple[Dim, ...] = ("N", 10)) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=shape),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=output),),
    )


def test_by_name() -> None:
    assert match(CLASSIFIER, LABELLED, Task()) == Matched({"image": "image"}, "labels", "scores")


def test_the_only_other_array_feeds_the_only_input() -> None:
    data = dataset(array("pictures"), labels("target_class"))
    assert match(CLASSIFIER, data, Task(label="target_class")).inputs == {"image": "pictures"}
    with pytest.raises(MismatchError, match="'pictures', 'target_class'"):
        match(CLASSIFIER, data, Task())


def test_several_inputs_go_by_name_only() -> None:
    tokens = [array(name, "int64", (100, 16)) for name in ("ids", "mask")]
    assert match(TEXT, dataset(*tokens), Task()).inputs == {"ids": "ids", "mask": "mask"}
    with pytest.raises(MismatchError, match="no array for the model's input 'mask'"):
        match(TEXT, dataset(tokens[0]), Task())


def test_a_label_that_is_not_there_is_no_error_here() -> None:
    assert match(CLASSIFIER, dataset(array("image")), Task(label="z")).labels is None


@pytest.mark.parametrize("shape", [(100, 28, 28), (100, 3, 28, 28), (100, 1, 28, 32)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MismatchError, match=r"wants \(N, 1, 28, 28\)"):
        match(CLASSIFIER, dataset(array("image", shape=shape)), Task())


def test_only_the_first_axis_and_open_dimensions_may_differ() -> None:
    data = dataset(array("x", shape=(100, 3, 7, 9)))
    assert match(signature(1, 3, None, "width"), data, Task()).inputs == {"x": "x"}


@pytest.mark.parametrize(
    ("wanted", "given", "fits"),
    [
        ("float32", array("x", "float64", (100, 4)), True),
        ("float16", array("x", "float32", (100, 4)), True),
        ("int64", array("x", "uint8", (100, 4)), True),
        ("int8", array("x", "int64", (100, 4), minimum=-128, maximum=127), True),
        ("int8", array("x", "int64", (100, 4), minimum=0, maximum=200), False),
        ("uint8", array("x", "int64", (100, 4), minimum=-1, maximum=20), False),
        ("int64", array("x", "bool", (100, 4)), True),
        ("int64", array("x", "float32", (100, 4)), False),
        ("float32", array("x", "uint8", (100, 4)), False),
    ],
)
def test_types_must_not_lose_anything(wanted: str, given: ArraySpec, fits: bool) -> None:
    if fits:
        assert match(signature("N", 4, dtype=wanted), dataset(given), Task())
    else:
        with pytest.raises(MismatchError):
            match(signature("N", 4, dtype=wanted), dataset(given), Task())


def test_whole_numbers_into_a_float_input_are_told_to_be_normalised() -> None:
    with pytest.raises(MismatchError, match="normalise"):
        match(CLASSIFIER, dataset(array("image", "uint8")), Task())


@pytest.mark.parametrize("output", [1, "other", -1])
def test_an_output_that_does_not_exist(output: int | str) -> None:
    with pytest.raises(MismatchError) as caught:
        match(CLASSIFIER, LABELLED, Task(output=output))
    assert caught.value.pointer == "/task/output"


@pytest.mark.parametrize(
    ("output", "given", "kind"),
    [
        (("N", 10), labels("y"), "classification"),
        (("N", 10), array("y", "int64", (100, 1), minimum=0, maximum=9), "classification"),
        (("N", None), labels("y", 99999), "classification"),
        (("N", 1), labels("y", 1), "classification"),
        (("N", 1), array("y", "int64", (100, 1), minimum=0, maximum=1), "classification"),
        (("N", 1), array("y", "int64", (100, 1), minimum=0, maximum=90), "regression"),
        (("N", "T", 5), array("y", "int64", (100, 7), minimum=-100, maximum=4), "classification"),
        (("N", 21, "H", "W"), array("y", "uint8", (100, 64, 64), minimum=0, maximum=20), "classification"),
        (("N", 10), array("y", "int8", (100, 10), minimum=0, maximum=1), "classification"),
        (("N", 1), array("y", "float32", (100,)), "regression"),
        (("N", None), array("y", "float32", (100,)), "regression"),
        (("N",), array("y", "float32", (100, 1)), "regression"),
        (("N", 10), array("y", "float32", (100, 10)), "regression"),
        (("N", 4), array("y", "float32", (100, 4)), "regression"),
        (("N", 4), ONE_HOT, "classification"),
        (("N", 1), array("y", "int64", (100,), minimum=18, maximum=79), "regression"),
        (("N",), array("y", "int64", (100,), minimum=18, maximum=79), "regression"),
    ],
)
def test_the_kind_is_inferred_from_labels_and_output(output: tuple[Dim, ...], given: ArraySpec, kind: str) -> None:
    assert check_labels(signature("N", 4, output=output), dataset(given), Task(), "y") == kind


def test_a_metric_of_regression_says_that_a_distribution_is_to_be_met() -> None:
    assert check_labels(signature("N", 4, output=("N", 4)), dataset(ONE_HOT), Task(metric="mse"), "y") == "regression"


def test_an_output_of_class_numbers_is_a_classification() -> None:
    output = TensorSpec(name="cls", dtype="int64", shape=("N",))
    numbers = Signature(inputs=signature("N", 4).inputs, outputs=(output,))
    assert check_labels(numbers, dataset(labels("y", 700)), Task(), "y") == "classification"
    assert class_axis(output, [labels("y", 700)]) is None


def test_top_5_is_of_the_axis_that_holds_the_classes() -> None:
    pixels = TensorSpec(name="y", dtype="float32", shape=("N", 21, 4, 4))
    axis = class_axis(pixels, [array("y", "uint8", (100, 4, 4), minimum=0, maximum=20)])
    assert "top5_accuracy" in fitting_metrics("classification", class_count(pixels, axis))
    assert "top5_accuracy" not in fitting_metrics("classification", 4)


@pytest.mark.parametrize(
    ("task", "given", "sentence"),
    [
        (Task(), labels("y", 10), "go up to 10, but the output 'y' has 10 classes"),
        (Task(), array("y", "int64", (100,), minimum=-1, maximum=9), "go down to -1"),
        (Task(), array("y", "float32", (100, 3)), "do not fit the output"),
        (Task(), array("y", "float32", (100,)), "do not fit the output"),
        (Task(kind="classification"), array("y", "float32", (100,)), "whole numbers"),
        (Task(kind="regression"), array("y", "int64", (100, 3), minimum=0, maximum=9), "do not fit"),
    ],
)
def test_labels_that_do_not_fit(task: Task, given: ArraySpec, sentence: str) -> None:
    with pytest.raises(MismatchError, match=sentence):
        check_labels(signature("N", 4), dataset(given), task, "y")


def test_a_teacher_takes_and_gives_the_same() -> None:
    renamed = Signature(
        inputs=(TensorSpec(name="x", dtype="float16", shape=(None, 1, 28, 28)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None, 10)),),
    )
    check_teacher(CLASSIFIER, renamed)
    with pytest.raises(MismatchError, match="the teacher has 2 inputs, the model 1"):
        check_teacher(CLASSIFIER, TEXT)
    with pytest.raises(MismatchError, match="output 'y' is float32 of shape"):
        check_teacher(CLASSIFIER, signature("N", 1, 28, 28, output=("N", 12)))
