"""Each metric against a value worked out by hand or by another route."""

import numpy as np
import pytest

from modelpress.matching import Form
from workers.engine.errors import InvalidDataError
from workers.engine.losses import Scores
from workers.engine.measuring.metrics import METRICS
from workers.engine.measuring.quality import QualityMeter, choose_metrics
from workers.engine.measuring.reading import Reading

CLASSES, ONE_HOT, CHOICES = Reading(Form.CLASSES, 1), Reading(Form.DISTRIBUTION, 1), Reading(Form.CHOICES)
VALUES = Reading(Form.VALUES)


def value(name, output, labels, reading=CLASSES):
    output, labels = np.asarray(output, np.float32), np.asarray(labels)
    metric = METRICS[name]
    return metric.value(metric.statistics(reading(output, labels)))


def test_accuracy_of_scores():
    assert value("accuracy", [[3, 1, 2], [0, 5, 1], [0, 1, 2], [9, 0, 0]], [0, 1, 1, 0]) == 0.75


def test_accuracy_of_positions_and_of_pixels():
    last = np.zeros((1, 4, 3))  # scores a position: classes last
    last[0, :, 2] = 1
    assert value("accuracy", last, [[2, 2, 2, 0]], Reading(Form.CLASSES, 2)) == 0.75
    second = np.zeros((1, 3, 2, 2))  # scores a pixel: classes second
    second[0, 1] = 1
    assert value("accuracy", second, [[[1, 1], [0, 1]]]) == 0.75


@pytest.mark.parametrize(
    ("output", "scores"),
    [([[-2.0], [3.0], [0.5]], Scores.LOGITS), ([[0.1], [0.9], [0.6]], Scores.SIGMOIDS)],
    ids=["logits", "probabilities"],
)
def test_one_score_decides_between_two_classes(output, scores):
    reading = Reading(Form.INDEPENDENT, None, scores)
    assert value("accuracy", output, [0, 1, 0], reading) == pytest.approx(2 / 3)
    assert value("accuracy", output, [[0], [1], [0]], reading) == pytest.approx(2 / 3)


def test_logits_that_lie_between_0_and_1_are_still_logits():
    """The reading is decided once, so that a batch of small logits does not turn into probabilities."""
    assert value("accuracy", [[0.2], [0.4]], [1, 1], Reading(Form.INDEPENDENT, None, Scores.LOGITS)) == 1


def test_one_hot_labels_are_read_as_the_class():
    scores = np.random.default_rng(0).normal(size=(50, 10))
    classes = np.random.default_rng(1).integers(0, 10, 50)
    for name in ("accuracy", "top5_accuracy", "f1"):
        assert value(name, scores, np.eye(10, dtype=int)[classes], ONE_HOT) == value(name, scores, classes)


def test_class_numbers_that_the_model_answers_itself_are_compared_by_equality():
    assert value("accuracy", [3, 1, 2, 0], [3, 1, 1, 0], CHOICES) == 0.75
    assert value("f1", [0, 0, 0, 1], [0, 0, 1, 1], CHOICES) == pytest.approx((0.8 + 2 / 3) / 2)


@pytest.mark.parametrize("classes", [4, 7])
def test_positions_that_do_not_count_are_left_out(classes):
    scores = np.eye(classes)[[[0, 1, 2, 3]]]
    positions = Reading(Form.CLASSES, 2)
    assert value("accuracy", scores, [[0, 1, -100, 0]], positions) == pytest.approx(2 / 3)
    assert value("f1", scores, [[0, 1, -100, 3]], positions) == 1
    assert value("top5_accuracy", scores, [[0, -100, -100, -100]], positions) == 1
    assert value("accuracy", scores, [[-100, -100, -100, -100]], positions) == 0


def test_f1_among_the_others_keeps_counts_and_no_pixels():
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(12, 5, 16, 16)), generator.integers(-1, 5, (12, 16, 16))
    labels[labels < 0] = -100
    meter = QualityMeter(choose_metrics("classification", None, 5), CLASSES, 0)
    for part in (slice(0, 8), slice(8, 12)):
        meter.add(scores[part], scores[part], labels[part])
    found = meter.result()
    assert found.others["f1"][0] == pytest.approx(value("f1", scores, labels))
    assert sum(array.size for pair in meter._sums.values() for array in pair) == 2 * 3 * 5


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
    assert value("mse", [[1.0], [3.0]], [[0.0], [1.0]], VALUES) == 2.5
    assert value("mae", [1.0, 3.0], [0.0, 1.0], VALUES) == 1.5


def test_infinite_answers_give_a_large_error_and_no_infinity():
    assert np.isfinite(value("mse", [[np.inf], [1.0]], [[0.0], [1.0]], VALUES))
    assert value("mae", [[np.inf], [1.0]], [[0.0], [1.0]], VALUES) > 1e20


def test_correlation_is_pearsons():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 3)).astype(np.float32)
    y = x + generator.normal(size=x.shape)
    assert value("correlation", x, y, VALUES) == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1], abs=1e-6)


def test_cosine_is_the_mean_over_the_examples():
    assert value("cosine", [[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [1.0, -1.0]], VALUES) == pytest.approx(0.5)


def test_cosine_of_zeros():
    """Zeros are like zeros and like nothing else, here as in the agreement."""
    assert value("cosine", [[0.0, 0.0]], [[0.0, 0.0]], VALUES) == 1
    assert value("cosine", [[0.0, 0.0]], [[1.0, 0.0]], VALUES) == 0


def test_the_token_error_rate_is_of_all_sequences_together():
    sequences = Reading(Form.SEQUENCES, 2)
    scores = np.eye(4)[[[1, 1, 0, 2], [3, 3, 3, 3], [0, 0, 0, 0]]]
    wanted = [[1, 2, -100], [3, 1, 3], [0, 0, 0]]  # blanks and negative numbers are padding
    assert value("token_error_rate", scores, wanted, sequences) == pytest.approx(2 / 5)
    time_first = scores.swapaxes(0, 1)
    assert value("token_error_rate", time_first, wanted, sequences) == pytest.approx(2 / 5)


def test_the_nearest_neighbor_is_another_example():
    vectors = [[1.0, 0.0], [5.0, 0.1], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]]
    assert value("nearest_neighbor", vectors, [0, 0, 1, 1, 2], Reading(Form.GROUPS)) == 0.8
    assert value("nearest_neighbor", vectors, [0, 0, 1, 1, -100], Reading(Form.GROUPS)) == 1.0


def test_labels_of_embeddings_tell_what_measures_them():
    assert [m.name for m in choose_metrics("embedding", None, None, Form.GROUPS)] == ["nearest_neighbor"]
    assert [m.name for m in choose_metrics("embedding", None, None, Form.DIRECTIONS)] == ["cosine"]
    with pytest.raises(InvalidDataError, match="does not fit"):
        choose_metrics("embedding", "cosine", None, Form.GROUPS)


def test_the_wanted_metric_comes_first_and_must_fit():
    assert [m.name for m in choose_metrics("classification", "f1", 10)] == ["f1", "accuracy", "top5_accuracy"]
    assert [m.name for m in choose_metrics("classification", None, 4)] == ["accuracy", "f1"]
    assert choose_metrics("regression", None, None)[0].name == "mse"
    with pytest.raises(InvalidDataError, match="does not fit"):
        choose_metrics("regression", "accuracy", None)
