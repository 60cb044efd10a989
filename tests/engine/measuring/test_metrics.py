"""Each metric against a value worked out by hand or by another route."""

import numpy as np
import pytest

from workers.engine.errors import InvalidDataError
from workers.engine.measuring.metrics import CLASSIFICATION, REGRESSION
from workers.engine.measuring.quality import choose_metrics

ALL = {**CLASSIFICATION, **REGRESSION}


def value(name, output, labels):
    output, labels = np.asarray(output, np.float32), np.asarray(labels)
    metric = ALL[name]
    return metric.value(metric.statistics(output, labels))


def test_accuracy_of_scores():
    assert value("accuracy", [[3, 1, 2], [0, 5, 1], [0, 1, 2], [9, 0, 0]], [0, 1, 1, 0]) == 0.75


def test_accuracy_takes_labels_as_a_column():
    assert value("accuracy", [[3, 1], [0, 5]], [[0], [0]]) == 0.5


def test_accuracy_of_positions_and_of_pixels():
    last = np.zeros((1, 4, 3))  # scores a position: classes last
    last[0, :, 2] = 1
    assert value("accuracy", last, [[2, 2, 2, 0]]) == 0.75
    second = np.zeros((1, 3, 2, 2))  # scores a pixel: classes second
    second[0, 1] = 1
    assert value("accuracy", second, [[[1, 1], [0, 1]]]) == 0.75


@pytest.mark.parametrize("output", [[[-2.0], [3.0], [0.5]], [[0.1], [0.9], [0.6]]], ids=["logits", "probabilities"])
def test_one_score_decides_between_two_classes(output):
    assert value("accuracy", output, [0, 1, 0]) == pytest.approx(2 / 3)
    assert value("accuracy", output, [[0], [1], [0]]) == pytest.approx(2 / 3)


def test_nan_scores_are_never_right():
    nan = np.full((2, 6), np.nan)
    assert value("accuracy", nan, [0, 0]) == 0
    assert value("top5_accuracy", nan, [0, 1]) == 0
    assert value("f1", nan, [0, 1]) == 0


def test_top5_accuracy():
    scores = np.arange(10)[None].repeat(2, 0)
    assert value("top5_accuracy", scores, [5, 4]) == 0.5


def test_macro_f1():
    # class 0: precision 2/3, recall 1; class 1: precision 1, recall 1/2; class 2 occurs nowhere
    scores = np.eye(3)[[0, 0, 0, 1]]
    assert value("f1", scores, [0, 0, 1, 1]) == pytest.approx((0.8 + 2 / 3) / 2)


def test_errors_of_regression():
    assert value("mse", [[1.0], [3.0]], [[0.0], [1.0]]) == 2.5
    assert value("mae", [1.0, 3.0], [0.0, 1.0]) == 1.5


def test_infinite_answers_give_a_large_error_and_no_infinity():
    assert np.isfinite(value("mse", [[np.inf], [1.0]], [[0.0], [1.0]]))
    assert value("mae", [[np.inf], [1.0]], [[0.0], [1.0]]) > 1e20


def test_correlation_is_pearsons():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 3)).astype(np.float32)
    y = x + generator.normal(size=x.shape)
    assert value("correlation", x, y) == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1], abs=1e-6)


def test_cosine_is_the_mean_over_the_examples():
    assert value("cosine", [[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [1.0, -1.0]]) == pytest.approx(0.5)


def test_the_wanted_metric_comes_first_and_must_fit():
    assert [m.name for m in choose_metrics("classification", "f1", 10)] == ["f1", "accuracy", "top5_accuracy"]
    assert [m.name for m in choose_metrics("classification", None, 4)] == ["accuracy", "f1"]
    assert choose_metrics("regression", None, None)[0].name == "mse"
    with pytest.raises(InvalidDataError, match="does not fit"):
        choose_metrics("regression", "accuracy", None)
